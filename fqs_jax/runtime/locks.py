"""Locks between runs that write into the same folder.

A lock is an open file that the kernel unlocks when its process ends, however it ends. So a lock that a
killed run has left behind is harmless, and nothing is ever cleaned up. A folder of a bucket has a lease
in place of a lock (runtime/leases.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from fqs_jax.runtime import agreement, files, inputs, leases, outputs, paths
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.notes import note

NAME = ".lock"  # in the folder that is locked
_PAUSE = 0.2  # seconds between two tries
_PATIENCE = 2.0  # seconds until a waiting process says for what it waits
_LONGEST = 300  # bytes of a lock file that are read


class FolderLock:
    """The right to write into a folder, which process 0 holds for all processes of a run.

    All processes must enter, check and leave it together.

    Args:
      folder: made if it does not exist.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._held = contextlib.ExitStack()
        self._file: int | None = None

    def __enter__(self) -> FolderLock:
        def take() -> None:
            self._file = self._held.enter_context(held(self._folder))

        agreement.on_main(take)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def check(self) -> None:
        """Check that the folder is still where it was.

        Raises:
          UserError: it was moved or removed, on all processes.
        """

        def look() -> None:
            leases.check(self._folder)
            if self._file is not None and not _is_at(self._file, self._folder / NAME):
                raise UserError(
                    f"{self._folder} was moved or removed while it was in use; put it back, or give "
                    "--workdir its new place, and run the command again to resume"
                )

        agreement.on_main(look)


@contextlib.contextmanager
def workdir(root: Path) -> Iterator[None]:
    """Hold a working directory in a bucket for a whole run; on a disk, whose stages have locks, do nothing.

    All processes must enter and leave it together.

    Raises:
      UserError: the bucket cannot be used, or another run holds it.
    """
    if not paths.is_bucket(root):
        yield
        return
    with FolderLock(root):
        yield


def wait_for(file: int, path: Path) -> None:
    """Lock an open file until it is closed, however long another process has it.

    A note on stderr says what is waited for, or that the disk has no locks.

    Raises:
      OSError: it cannot be locked.
    """
    started, told = time.monotonic(), False
    while (locked := files.try_lock(file)) is False:
        if not told and time.monotonic() - started > _PATIENCE:
            note(f"waiting for another process, which writes {inputs.name(path)}")
            told = True
        time.sleep(_PAUSE / 4)
    if locked is None:
        where = inputs.name(path)
        note(f"the disk of {where} has no locks, so let no second process write it", once=where)


@contextlib.contextmanager
def held(folder: Path, seconds: float = 0.0) -> Iterator[int | None]:
    """Hold the lock of a folder; the value is the descriptor of the lock file, None in a bucket.

    On a file system without locks, a note on stderr says so, and nothing is locked.

    Args:
      folder: made if it does not exist.
      seconds: how long to wait for another process that holds it.

    Raises:
      UserError: another process holds it, which the message names; or the folder cannot be written.
    """
    if paths.is_bucket(folder):
        with leases.held(folder):
            yield None
        return
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Network file systems lock only files that are open for writing.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise outputs.no_workdir(folder, error) from error
    try:
        _lock(file, folder, seconds)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, it only has no name
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield file
    finally:
        os.close(file)


def _lock(file: int, folder: Path, seconds: float) -> None:
    """Lock an open file; see `held`."""
    started, told = time.monotonic(), False
    while True:
        try:
            locked = files.try_lock(file)
        except OSError as error:
            raise UserError(f"cannot lock {folder / NAME}: {error.strerror}") from error
        if locked is None:
            note(f"the disk of {folder} has no locks, so start no second run there")
        if locked is not False:
            return
        waited = time.monotonic() - started
        if waited >= max(seconds, _PAUSE):  # the holder may not have written its name yet
            raise UserError(
                f"{folder} is in use by {_holder(file)}; wait until it ends, or use another --workdir"
            )
        if waited > _PATIENCE and not told:
            note(f"waiting for {_holder(file)}, which uses {folder}")
            told = True
        time.sleep(_PAUSE / 4)


def _holder(file: int) -> str:
    """The process that holds a lock, as it has named itself."""
    name = os.pread(file, _LONGEST, 0).decode(errors="replace").strip()
    return printable(name, 100) or "another process"


def _is_at(file: int, path: Path) -> bool:
    """True if an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
