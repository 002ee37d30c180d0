"""Paths as users write them: `~` is expanded, and addresses of other machines are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fqs_jax.runtime.errors import UserError, printable

# One slash is what is left of an address that has gone through a path.
_ADDRESS = re.compile(r"(?i)([A-Za-z][A-Za-z0-9+.-]*)://|(abfs|az|file|gcs|gs|hdfs|hf|https?|s3):/")


def expand(path: str | os.PathLike[str]) -> Path:
    """A path that a user gave, with `~` and `~NAME` expanded.

    Raises:
      UserError: it is the address of a bucket or of another service (gs://, s3://, hf://, file://),
        has a NUL character, or names an unknown home folder.
    """
    text = os.fspath(path)
    shown = printable(text, 200)
    if address := _ADDRESS.match(text):
        kind = (address[1] or address[2]).lower()
        way = {
            "file": "give the path alone",
            "hf": "download it first: hf download NAME --local-dir FOLDER",
        }
        raise UserError(
            f"{shown} is an address, and only files and folders of this machine can be used; "
            + way.get(kind, "copy it here first, or mount it as a folder")
        )
    if "\0" in text:
        raise UserError(f"{shown} has a NUL character, which no path can have")
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        name = text.split("/")[0]
        raise UserError(
            f"{shown}: there is no home folder of {name!r}; write the folder's name in full"
        ) from error


def check_workdir(folder: Path) -> None:
    """Refuse a working directory whose checkpoints could not be saved or read, before hours of training.

    Orbax takes some characters of the full name for a pattern, and TensorStore needs UTF-8.

    Raises:
      UserError: the full name has one of these characters or a control character, or is not UTF-8.
    """
    full = str(folder.absolute())
    if printable(full) != full:  # which escapes half surrogates too, Python's signs for other bytes
        raise UserError(
            f"{printable(full, 300)}: no checkpoint can be kept under a name with control characters or "
            "bytes that are not UTF-8; choose another folder, or rename it"
        )
    if found := re.search(r"[\[*?\\]", full):
        raise UserError(
            f"{printable(full, 300)}: no checkpoint can be kept under a name with {found[0]}; choose "
            "another folder, or rename it"
        )
