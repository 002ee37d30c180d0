"""Files and folders that are written: they appear complete or not at all.

A file or folder gets its name by a rename, after its content has reached the disk. So neither a kill
nor a power cut leaves a part of it under that name.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fqs_jax.runtime import outputs
from fqs_jax.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np  # takes long to import, and every program imports this file


def cache_folder() -> Path:
    """The user's folder for everything that can be made again; a temporary one for users without a home."""
    home = os.path.expanduser("~")
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "fqs_jax"
    if not os.path.isabs(home):  # neither HOME nor the system names one
        return Path(tempfile.gettempdir()) / f"fqs_jax_{os.getuid()}"
    return Path(home) / ".cache" / "fqs_jax"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; see `replace`."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see `replace`."""
    replace(path, lambda file: file.write(text.encode()))


def nan_as_none(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON lacks, also inside lists and dicts."""
    if isinstance(value, dict):
        return {key: nan_as_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_as_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace(path: Path, write: Callable[[BinaryIO], object], many_writers: bool = False) -> None:
    """Write a file that appears complete or not at all; an existing file is replaced.

    Once this returns, the new file survives a power cut. If it raises, the old one is untouched.

    Args:
      write: writes the content into an open file.
      many_writers: several processes may write this file at the same time; the last one wins.

    Raises:
      UserError: the path is a link, a folder or a device, which a rename would replace.
    """
    outputs.check_kind(path)
    # With one writer the name is always the same: the next write overwrites what a kill has left.
    unique = f".{uuid.uuid4().hex[:8]}" if many_writers else ""
    temporary = path.with_name(f".{path.name}{unique}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def replace_array(path: Path, values: np.ndarray) -> None:
    """Write a `.npy` file of the cache, and its folder; several processes may write the same file.

    Raises:
      UserError: the disk refuses.
    """
    import numpy as np

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, lambda file: np.save(file, values, allow_pickle=False), many_writers=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; set data.cache_dir to a folder with room"
        ) from error


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A temporary sibling of `out` that is renamed to `out` when the block ends without an error.

    Raises:
      UserError: `out` is a file or a folder that is not empty, or the disk refuses.
    """
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another name or remove it first")
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with Path(folder, name).open("rb") as file:
                    os.fsync(file.fileno())
            _sync_folder(Path(folder))
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(out.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, on file systems that offer it."""
    with contextlib.suppress(OSError):  # some network file systems refuse to open or sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
