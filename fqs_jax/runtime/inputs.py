"""Files that users and other programs have written: regular files only, of bounded size, one line on error.

A named pipe would block for ever, a device would never end, and a file of many gigabytes under the name
of a small one would fill the memory. So everything that is read whole is read through this file, and
`check_file` comes before a library opens a path by itself.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from fqs_jax.runtime import buckets, paths
from fqs_jax.runtime.errors import UserError, printable

LFS_POINTER = (
    b"version https://git-lfs"  # the start of what Git LFS leaves in place of a large file
)
MOST_BYTES = 1 << 26  # of a file that is read whole, unless its reader says otherwise: 64 MiB
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_file(path: Path) -> os.stat_result:
    """The state of a regular file; links are followed.

    Raises:
      UserError: it does not exist, or it is a folder, a pipe, a device or a socket.
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    _require_regular(path, state)
    return state


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes. What is opened is what was checked.

    An object of a bucket is read whole at once.

    Raises:
      UserError: as for `check_file`, or the system refuses.
    """
    if paths.is_bucket(path):
        try:
            return buckets.open_file(path)
        except FileNotFoundError as error:
            raise _unreadable(path, error) from error
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if path.exists():
            check_file(path)  # a socket cannot be opened at all
        raise _unreadable(path, error) from error
    try:
        _require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file.

    Args:
      most: largest size, in bytes.

    Raises:
      UserError: as for `open_file`, or the file is larger.
    """
    with open_file(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
    if len(data) > most:
        raise UserError(
            f"{name(path)} is larger than {most >> 20} MiB, the most that is read of such a file"
        )
    return data


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a regular file in UTF-8, without the byte order mark.

    Raises:
      UserError: as for `read_bytes`, or the bytes are not UTF-8.
    """
    data = read_bytes(path, most)
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name(path)} is not UTF-8 at byte {error.start}; convert it or write it again"
        ) from error


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a regular file.

    Raises:
      UserError: as for `read_bytes`; or the file is not valid JSON, is nested too deeply, or its top
        level is no object.
    """
    try:
        value = json.loads(read_bytes(path, most).removeprefix(codecs.BOM_UTF8).decode())
    except UserError:
        raise
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(
            f"{name(path)} is not valid JSON: {printable(str(error), 200)}; fetch or write it again"
        ) from error
    except RecursionError as error:
        raise UserError(f"{name(path)} is not valid JSON: it is nested too deeply") from error
    if not isinstance(value, dict):
        raise UserError(f"{name(path)} should hold a JSON object, found a {type(value).__name__}")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file; empty if the file does not exist. Errors as for `read_json`."""
    return read_json(path) if path.exists() else {}


def name(path: Path | str) -> str:
    """A path as messages show it."""
    return printable(str(path), 300)


def _require_regular(path: Path, state: os.stat_result) -> None:
    kind = stat.S_IFMT(state.st_mode)
    if kind != stat.S_IFREG:
        raise UserError(f"{name(path)} is {_KINDS.get(kind, 'no regular file')}, not a file")


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"cannot read {name(path)}: no such file; check the name")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"cannot read {name(path)}: {reason}")
