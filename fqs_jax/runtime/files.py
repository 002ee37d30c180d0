"""JSON with readable errors, and files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fqs_jax.runtime.errors import UserError

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fqs_jax"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: the file is missing, unreadable, not valid JSON, or its top level is no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, found a {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears complete or not at all."""
    data = json.dumps(value, indent=1).encode()
    replace(path, lambda file: file.write(data))


def nan_as_none(value: Any) -> Any:
    """The same value with None for every NaN, which JSON lacks, also inside lists and dicts."""
    if isinstance(value, dict):
        return {key: nan_as_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_as_none(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


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
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that appears complete or not at all, in place of the one before; one writer at a time.

    Args:
      write: writes the content into an open file.
    """
    temporary = path.with_name(f"{path.name}.tmp")  # what a kill leaves, the next writer overwrites
    with temporary.open("wb") as file:
        write(file)
    temporary.replace(path)


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


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted paths."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
