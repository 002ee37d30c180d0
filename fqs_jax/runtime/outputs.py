"""Files that are about to be replaced: only regular files, and only those that are ours."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

_END = 1 << 16  # bytes at the start and at the end of a file, by which it is recognised


def check_kind(path: Path) -> None:
    """Refuse to replace a link, a folder, a device, a pipe or a socket.

    Raises:
      UserError: the path is one of them.
    """
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return  # nothing is there; writing says what else is wrong
    if stat.S_ISLNK(mode):
        raise UserError(f"{inputs.name(path)} is a link, which is not replaced; name a file")
    if not stat.S_ISREG(mode):
        inputs.check_file(path)


def check_ours(path: Path, is_ours: Callable[[bytes, bytes], bool], kind: str, flag: str) -> None:
    """Refuse to replace a file that this program did not write.

    Args:
      is_ours: decides from the first and the last bytes of the file; an empty file is nobody's.
      kind: what the file should be, for the message, such as "report".
      flag: the flag that names another file.

    Raises:
      UserError: it is another file, or no regular file.
    """
    check_kind(path)
    if not path.exists():
        return
    with inputs.open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(_END)
        file.seek(max(0, size - _END))
        end = file.read(_END)
    if size and not is_ours(start, end):
        raise UserError(
            f"{inputs.name(path)} exists already and is no {kind}; name another file with {flag}, or "
            "remove it first"
        )


def no_workdir(folder: Path, error: OSError) -> UserError:
    """Why nothing can be written in a working directory, and what to do."""
    if folder.exists() and not folder.is_dir():
        return UserError(
            f"{inputs.name(folder)} is a file, not a folder; give --workdir another name"
        )
    room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return UserError(
        f"cannot write in {inputs.name(folder)}: {error.strerror}; {room}give --workdir another place"
    )
