"""Leases: one run at a time in a folder of a bucket, where nothing can be locked.

A lease is the object FOLDER/lease/NUMBER.json with the highest number. Each is made exclusively, so of
several runs that want the next number one gets it. Its holder writes it again every few seconds. A lease
that was not renewed for a while has run out, and the next run takes the next number. A run that finds a
higher number than its own has slept through its lease, and stops before it writes anything.

No two clocks are compared: who waits for a lease watches, by the own clock, whether it is renewed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fqs_jax.runtime import buckets
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.notes import note

FOLDER = "lease"
RENEWAL = 10.0  # seconds between two renewals
DURATION = 60.0  # seconds after which a lease that is not renewed has run out
_PAUSE = 1.0  # seconds between two looks
_held: list[Lease] = []


def _now() -> float:
    """Seconds that have passed, those in which the machine slept included where the system tells."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """A lease that this process has taken.

    Args:
      folder: the folder that it is for.
      number: its number.
      holder: who holds it.
    """

    def __init__(self, folder: Path, number: int, holder: dict[str, Any]):
        self.folder, self.number, self._holder = folder, number, holder
        self._renewed = _now()
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that the lease is still held, for long enough to write something.

        Requests are made only if it was not renewed a moment ago.

        Raises:
          UserError: another run has taken it over, or that cannot be found out.
        """
        if self._lost is None and _now() - self._renewed > 2 * RENEWAL:
            self._renew()
        if self._lost is not None:
            raise UserError(
                f"{self.folder} was taken over by {self._lost}, because this run did not renew its lease for "
                f"{DURATION:.0f} s (was it stopped, or its host asleep?); nothing more is written"
            )

    def release(self) -> None:
        """Let the next run take the folder at once."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(UserError, FileNotFoundError):  # then it runs out
            self._renew(released=True)

    def _keep(self) -> None:
        while self._lost is None and not self._ended.wait(RENEWAL):
            with contextlib.suppress(UserError, OSError):  # `check` tries again
                self._renew()

    def _renew(self, **more: Any) -> None:
        """Write the lease again. It counts from before, and only if nobody had a higher number afterwards."""
        started = _now()
        self._look()
        if self._lost is None:
            buckets.write(_object(self.folder, self.number), _content(self._holder | more))
            self._look()
        if self._lost is None:
            self._renewed = started

    def _look(self) -> None:
        """Look whether there is a higher number."""
        newest = _newest(self.folder)
        if newest is not None and newest[0] > self.number:
            self._lost = _name(_read(newest[1]))


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lease of a folder of a bucket; nothing more is done in a folder whose lease is held already.

    Raises:
      UserError: another run holds it, which the message names; or the bucket cannot be used.
    """
    if _of(folder) is not None:
        yield
        return
    lease = _take(folder)
    _held.append(lease)
    try:
        yield
    finally:
        _held.remove(lease)
        lease.release()


def check(path: Path) -> None:
    """Check the lease that this process holds for a path, if it holds one.

    Raises:
      UserError: another run has taken it over.
    """
    if (lease := _of(path)) is not None:
        lease.check()


def number(path: Path) -> int | None:
    """The number of the lease that this process holds for a path; None if it holds none."""
    lease = _of(path)
    return None if lease is None else lease.number


def _of(path: Path) -> Lease | None:
    place = f"{os.fspath(path)}/"
    return next((held for held in _held if place.startswith(f"{os.fspath(held.folder)}/")), None)


def _take(folder: Path) -> Lease:
    """Take the lease of a folder, once nobody holds it.

    Raises: as for `held`.
    """
    import socket  # which every program would wait for

    holder = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "boot": _boot(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "token": os.urandom(8).hex(),
    }
    while True:
        newest = _newest(folder)
        if newest is not None:
            _wait_for(folder, *newest)
        number = 1 if newest is None else newest[0] + 1
        try:
            if buckets.create(_object(folder, number), _content(holder)):
                break
        except FileNotFoundError as error:
            raise UserError(f"cannot write {folder}: there is no such bucket") from error
    lease = Lease(folder, number, holder)
    for old in range(
        max(1, number - 3), number - 1
    ):  # the one before stays, for whoever reads it just now
        with contextlib.suppress(UserError, OSError):
            buckets.delete(_object(folder, old))
    return lease


def _wait_for(folder: Path, number: int, lease: Path) -> None:
    """Wait until a lease has run out.

    Raises:
      UserError: it is renewed.
    """
    first = _read(lease)
    if first.get("released") or _is_dead(first):
        return
    state, started = _generation(lease), _now()
    note(
        f"{folder} was last used by {_name(first)}; waiting up to {DURATION:.0f} s for its lease to run out"
    )
    looked = started
    # Until a look that began after that time has seen no renewal.
    while looked - started < DURATION:
        time.sleep(_PAUSE)
        looked = _now()
        newest = _newest(folder)
        if newest is None or newest[0] != number or _read(lease).get("released"):
            return
        if _generation(lease) != state:
            raise UserError(
                f"{folder} is in use by {_name(first)}; wait until it ends, or use another --workdir"
            )


def _newest(folder: Path) -> tuple[int, Path] | None:
    """The number and the object of the newest lease."""
    found = [
        (int(match[1]), folder / FOLDER / name)
        for name in buckets.objects(folder / FOLDER)
        if (match := re.fullmatch(r"(\d{6,})\.json", name))
    ]
    return max(found, default=None)


def _object(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number:06d}.json"


def _content(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder).encode()


def _read(lease: Path) -> dict[str, Any]:
    """The holder of a lease; empty if it is gone or unreadable."""
    try:
        holder = json.loads(buckets.read(lease))
    except (FileNotFoundError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _generation(lease: Path) -> str:
    """A value that changes with every renewal."""
    return str(buckets.objects(lease.parent).get(lease.name, {}).get("generation"))


def _name(holder: dict[str, Any]) -> str:
    return printable(
        f"process {holder.get('process')} on {holder.get('host')}, since {holder.get('since')}", 200
    )


def _is_dead(holder: dict[str, Any]) -> bool:
    """True for a process of this machine that no longer exists."""
    if not holder.get("boot") or holder.get("boot") != _boot():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError):
        return False
    return False


def _boot() -> str:
    """The name of this start of this machine; empty where the system has none."""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # numbers of processes are those of a container
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + space
    return ""
