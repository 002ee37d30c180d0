"""Metrics as numbered parts in a folder, for buckets, where nothing can be appended to an object.

Lines are collected in memory. The last part is written anew, whole, with every flush, until it has
`SIZE` bytes; then the next one begins. Readers find whole parts at any time.

The name of a part has the number of its run's lease. A run that lost its lease may still have a part on its
way, which no longer counts: of each number that of the latest lease counts, and none after the last one of
that lease.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

from fqs_jax.runtime import files, inputs, leases

SIZE = 1 << 20  # bytes after which a part is full; what a flush uploads at most
INTERVAL = 30.0  # seconds between two flushes that nobody asks for, so that readers see a run go on
_PART = re.compile(r"(\d{6})(?:-([1-9]\d*))?\.jsonl")


class Parts:
    """The parts in a folder, open for writing further lines.

    Args:
      folder: may not exist. Parts of earlier runs are replaced.
      lines: those to begin with.
    """

    def __init__(self, folder: Path, lines: Iterable[bytes] = ()):
        self._folder, self._number, self._part = folder, 0, b""
        self._lease = leases.number(folder) or 0
        self._dirty, self._flushed = False, time.monotonic()
        found = _found(folder)
        before, after = _counted(found), dict[int, bytes]()
        for line in lines:
            self._part += line
            after[self._number] = self._part
            self._begin_next_if_full()
        if found:  # a part of this lease is the last one, even if it is empty
            after.setdefault(self._number, self._part)
        # From the end, so that a kill leaves a beginning of the rows.
        for number in sorted({number for _, number in found} - after.keys(), reverse=True):
            _remove(found, number)
        for number, content in after.items():
            is_full = number < self._number  # and never written again: that of any lease may stay
            place = before.get(number, self._path(number)) if is_full else self._path(number)
            if place not in found.values() or inputs.read_bytes(place) != content:
                place = self._path(number)
                _write(place, content)
            _remove(found, number, but=place)

    def write(self, line: bytes) -> None:
        """Add a line; it is written with the next flush, which comes by itself after `INTERVAL`."""
        self._part += line
        self._dirty = True
        if len(self._part) >= SIZE or time.monotonic() - self._flushed >= INTERVAL:
            self.flush()
            self._begin_next_if_full()

    def flush(self) -> None:
        """Write all lines so far.

        Raises:
          UserError: the bucket refuses.
        """
        if self._dirty:
            _write(self._path(self._number), self._part)
        self._dirty, self._flushed = False, time.monotonic()

    def close(self) -> None:
        """Nothing is open."""

    def _path(self, number: int) -> Path:
        """The part of a number that this run writes."""
        return self._folder / f"{number:06d}{f'-{self._lease}' if self._lease else ''}.jsonl"

    def _begin_next_if_full(self) -> None:
        if len(self._part) >= SIZE:
            self._number, self._part = self._number + 1, b""


def read(folder: Path) -> list[bytes]:
    """The contents of all parts, in order; empty without any."""
    return [inputs.read_bytes(path) for path in _counted(_found(folder)).values()]


def _remove(found: dict[tuple[int, int], Path], number: int, but: Path | None = None) -> None:
    """Remove the parts of a number, of all leases."""
    for key in [key for key in found if key[1] == number]:
        path = found.pop(key)
        if path != but:
            files.remove(path)


def _found(folder: Path) -> dict[tuple[int, int], Path]:
    """All parts, by lease and number; 0 for a part that was written without a lease."""
    matches = ((_PART.fullmatch(path.name), path) for path in files.entries(folder))
    return {(int(match[2] or 0), int(match[1])): path for match, path in matches if match}


def _counted(found: dict[tuple[int, int], Path]) -> dict[int, Path]:
    """The parts that count, in order, by number."""
    by_number = {number: path for (_, number), path in sorted(found.items())}
    _, last = max(found, default=(0, -1))
    return {number: by_number[number] for number in sorted(by_number) if number <= last}


def _write(part: Path, content: bytes) -> None:
    files.make_folder(part.parent)
    files.replace(part, lambda file: file.write(content))
