"""What is kept between runs: where the lines of large files are, and tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from pathlib import Path

import numpy as np

from fqs_jax.errors import UserError

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fqs_jax"


@dataclasses.dataclass(frozen=True)
class Options:
    """How sources are opened.

    Attributes:
      key: the field, column or feature with the text, where a source does not name its own.
      cache: folder for what is made from the text.
      tfds_dir: folder of prepared TFDS datasets; None = the library's own.
      download: whether a dataset that is not here may be fetched.
    """

    key: str = "text"
    cache: Path = DEFAULT
    tfds_dir: str | None = None
    download: bool = False


def replace_array(path: Path, values: np.ndarray) -> None:
    """Write a `.npy` file that is there whole or not at all, whoever else writes it.

    Raises:
      UserError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; set data.cache_dir to a folder with room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
