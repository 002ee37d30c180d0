"""Metrics as numbered parts in a folder, for buckets, where nothing can be appended to an object.

Lines are collected in memory. The last part is written anew, whole, with every flush, until it has
`SIZE` bytes; then the next one begins. Readers find whole parts at any time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

from fqs_jax.runtime import files, inputs

SIZE = 1 << 20  # bytes after which a part is full; what a flush uploads at most
INTERVAL = 30.0  # seconds between two flushes that nobody asks for, so that readers see a run go on
_PART = re.compile(r"\d{6}\.jsonl")


class Parts:
    """The parts in a folder, open for writing further lines.

    Args:
      folder: may not exist. Parts of earlier runs are replaced.
      lines: those to begin with.
    """

    def __init__(self, folder: Path, lines: Iterable[bytes] = ()):
        self._folder, self._number, self._part = folder, 0, b""
        self._dirty, self._flushed = False, time.monotonic()
        before = {path.name: path for path in _parts(folder)}
        after: dict[str, bytes] = {}
        for line in lines:
            self._part += line
            after[_name(self._number)] = self._part
            self._begin_next_if_full()
        # From the end, so that a kill leaves a beginning of the rows.
        for name in sorted(before.keys() - after.keys(), reverse=True):
            files.remove(before[name])
        for name, content in after.items():
            if name not in before or inputs.read_bytes(before[name]) != content:
                _write(folder / name, content)

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
            _write(self._folder / _name(self._number), self._part)
        self._dirty, self._flushed = False, time.monotonic()

    def close(self) -> None:
        """Nothing is open."""

    def _begin_next_if_full(self) -> None:
        if len(self._part) >= SIZE:
            self._number, self._part = self._number + 1, b""


def read(folder: Path) -> list[bytes]:
    """The contents of all parts, in order; empty without any."""
    return [inputs.read_bytes(path) for path in _parts(folder)]


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in files.entries(folder) if _PART.fullmatch(path.name))


def _name(number: int) -> str:
    return f"{number:06d}.jsonl"


def _write(part: Path, content: bytes) -> None:
    files.make_folder(part.parent)
    files.replace(part, lambda file: file.write(content))
