"""A check that all hosts of a run see the same working directory, before anything is made there."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from fqs_jax.runtime import agreement, outputs, paths
from fqs_jax.runtime.errors import UserError, printable

_LATE = 65.0  # seconds; a network disk may show a new file up to a minute late
_PAUSE = 0.2
_LONGEST = 64  # bytes of a host's name
_NAMED = 8  # hosts


def check(folder: Path) -> None:
    """Refuse a folder that is another one on some hosts; a single process shares it with nobody.

    Process 0 writes a small file with a random name, for which the others look.

    Args:
      folder: made if it does not exist.

    Raises:
      UserError: on all processes; it names the hosts that do not see the file.
    """
    if jax.process_count() == 1 or paths.is_bucket(folder):  # a bucket is one for everybody
        return
    token = agreement.agreed([secrets.randbelow(2**31)])[0]
    file = folder / f".seen_by_all_{token:08x}"

    def write() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            raise outputs.no_workdir(folder, error) from error

    agreement.on_main(write)
    try:
        main, blind = _main_and_hosts_where(not _appears(file))
    finally:
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                file.unlink()
    if blind:
        names = ", ".join(blind[:_NAMED]) + (", ..." if len(blind) > _NAMED else "")
        raise UserError(
            f"{folder} of process 0 ({main}) is not there on {names}: every host has a disk of "
            "its own under that name; give --workdir a folder on a file system that all hosts share, or a "
            "place in a bucket, gs://BUCKET/NAME"
        )


def _appears(file: Path) -> bool:
    """True once a file is there; looked for in a listing, because a network disk remembers what it missed."""
    end = time.monotonic() + _LATE
    while True:
        with contextlib.suppress(OSError):
            if any(found.name == file.name for found in file.parent.iterdir()):
                return True
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)


def _main_and_hosts_where(condition: bool) -> tuple[str, list[str]]:
    """The host of process 0, and those, each once, of the processes where the condition holds.

    The same on all processes.
    """
    own = np.zeros(1 + _LONGEST, np.uint8)
    name = printable(socket.gethostname()).encode()[:_LONGEST]
    own[0], own[1 : 1 + len(name)] = condition, np.frombuffer(name, np.uint8)
    rows = multihost_utils.process_allgather(own)
    names = [row[1:].tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
    blind = [name for name, row in zip(names, rows, strict=True) if row[0]]
    return names[0], list(dict.fromkeys(blind))
