"""Files that belong to a folder: a folder from outside may hold links to anything that its reader may read.

What such a link leads to would be published by a copy, or put into a text. The cache of the Hugging Face
hub, where a file of a snapshot is a link to a blob of the same repository, counts as one folder.
"""

from __future__ import annotations

from pathlib import Path

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

_REPOSITORIES = ("models--", "datasets--", "spaces--")


def read(path: Path, source: Path, most: int = inputs.MOST_BYTES) -> bytes:
    """The bytes of a file that belongs to a folder.

    Args:
      most: largest size, in bytes.

    Raises:
      UserError: the path is a link out of the folder, no regular file, or too large.
    """
    return inputs.read_bytes(check(path, source), most)


def check(path: Path, source: Path) -> Path:
    """The file behind a path, which lies in the source.

    Raises:
      UserError: it lies elsewhere.
    """
    try:
        file, home = path.resolve(strict=True), _home(source.resolve())
    except (OSError, RuntimeError) as error:  # a link to nothing, or to itself
        raise UserError(
            f"{inputs.name(path)} is a link to nothing; remove it, or put the file in its place"
        ) from error
    if not file.is_relative_to(home):
        raise UserError(
            f"{inputs.name(path)} is a link to a file outside of its folder, which is not copied; put "
            "the file itself there, or remove the link"
        )
    return file


def _home(source: Path) -> Path:
    """The folder whose files may be copied: the source, or its repository in a cache of the hub."""
    for folder in source.parents:
        if folder.name == "snapshots" and folder.parent.name.startswith(_REPOSITORIES):
            return folder.parent
    return source
