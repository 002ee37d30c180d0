"""Paths as users write them: of this machine, with `~` expanded, or of a bucket (gs://).

A path of a bucket is an `etils.epath.Path`, which has the methods of `pathlib.Path` that ask what exists.
Nothing of etils is imported for paths of this machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import cast

from fqs_jax.runtime.errors import UserError, printable

BUCKET = "gs://"
# One slash is what is left of an address that has gone through a path.
_ADDRESS = re.compile(r"(?i)([A-Za-z][A-Za-z0-9+.-]*)://|(abfs|az|file|gcs|gs|hdfs|hf|https?|s3):/")
_OTHER_WAYS = {
    "file": "give the path alone",
    "hf": "download it first: hf download NAME --local-dir FOLDER",
    "gs": "write it as gs://BUCKET/NAME",
    "gcs": "write it as gs://BUCKET/NAME",
}


def expand(path: str | os.PathLike[str]) -> Path:
    """A path that a user gave: of this machine, with `~` and `~NAME` expanded, or of a bucket (gs://).

    Raises:
      UserError: it is the address of another service (s3://, hf://, file://), names no bucket, has a NUL
        character, or names an unknown home folder.
    """
    text = os.fspath(path)
    if not text.startswith(BUCKET):
        return expand_local(text, " and of buckets (gs://)")
    bucket, _, name = text.removeprefix(BUCKET).partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", bucket) or not name.strip("/"):
        raise UserError(
            f"{printable(text, 200)} names no place in a bucket; write gs://BUCKET/NAME"
        )
    if printable(text) != text or {"", ".", ".."} & set(name.rstrip("/").split("/")):
        raise UserError(
            f"{printable(text, 200)}: a name in a bucket has no empty part, '.', '..' or control character"
        )
    from fqs_jax.runtime import buckets

    return cast(Path, buckets.path(text.rstrip("/")))


def expand_local(path: str | os.PathLike[str], more: str = "") -> Path:
    """The same for what must be on this machine.

    Args:
      more: what else can be used, for the message.

    Raises:
      UserError: as in `expand`, or it is in a bucket.
    """
    text = os.fspath(path)
    shown = printable(text, 200)
    if address := _ADDRESS.match(text):
        kind = (address[1] or address[2]).lower()
        way = _OTHER_WAYS.get(kind, "copy it here first, or mount it as a folder")
        if kind in ("gs", "gcs") and not more:
            way = "copy it here first, or mount it as a folder"
        raise UserError(
            f"{shown} is an address, and only files and folders of this machine{more} can be used; {way}"
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


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """True for a path of a bucket."""
    return os.fspath(path).startswith(BUCKET)


def full(path: Path) -> Path:
    """The path from the root of its file system, links followed; a path of a bucket is that already."""
    return path if is_bucket(path) else path.resolve()


def check_workdir(folder: Path) -> None:
    """Refuse a working directory whose checkpoints could not be saved or read, before hours of training.

    Orbax takes some characters of the full name for a pattern, and TensorStore needs UTF-8.

    Raises:
      UserError: the full name has one of these characters or a control character, or is not UTF-8.
    """
    full = str(folder if is_bucket(folder) else folder.absolute())
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
