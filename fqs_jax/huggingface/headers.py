"""Safetensors files, opened with errors of one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, opened lazily; all errors of its reading become a UserError of one line.

    Raises:
      UserError: it is no regular file, or it is damaged.
    """
    inputs.check_file(file)
    try:
        with safe_open(file, framework="np") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        with inputs.open_file(file) as start:
            if start.read(len(inputs.LFS_POINTER)) == inputs.LFS_POINTER:
                raise UserError(
                    f"{inputs.name(file)} is damaged or incomplete: it is a pointer of Git LFS; fetch "
                    "the file itself with git lfs pull"
                ) from error
        raise UserError(
            f"{inputs.name(file)} is damaged or incomplete, fetch it again "
            f"({printable(str(error), 200)})"
        ) from error


def place(file: Path, name: str) -> str:
    """A tensor of a file, as errors show it."""
    return f"{inputs.name(file)}: tensor {printable(name, 120)}"


def check_type(file: Path, name: str, header: Any) -> None:
    """Refuse a tensor that is not stored in one of the three types that are read.

    Raises:
      UserError: names the type.
    """
    if (dtype := header.get_dtype()) not in ("F32", "BF16", "F16"):
        raise UserError(
            f"{place(file, name)} has type {printable(str(dtype), 20)}, expected F32, BF16 or F16"
        )
