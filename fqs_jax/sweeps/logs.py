"""Logs of cells: written on this machine, and kept in the cell's folder, which may be in a bucket."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fqs_jax.runtime import buckets, files, paths
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.stderr import say

NAME = "log.txt"  # in a cell's folder


@dataclasses.dataclass
class Log:
    """The log of a cell.

    Attributes:
      place: its file in the cell's folder.
      here: the file of this machine that the cell's program appends to; the same, but for a bucket.
      num_kept: bytes of `here` that `place` has.
    """

    place: Path
    here: Path
    num_kept: int = 0

    def keep(self) -> None:
        """Add what is new to the object, which is read and written whole, since none can be appended to.

        If the bucket refuses, a line says so and the log stays here: cells are worth more than their logs.
        """
        if new := self.new():
            try:
                old = b""  # of earlier starts, also on other machines
                with contextlib.suppress(FileNotFoundError):
                    old = buckets.read(self.place)
                files.replace(self.place, lambda file: file.write(old + new))
                self.num_kept += len(new)
            except UserError as error:
                say(printable(f"note: a log stays in {self.here}: {error}"))

    def new(self) -> bytes:
        """The end of the log that `here` has and `place` lacks."""
        if self.here == self.place or not self.here.exists():
            return b""
        return self.here.read_bytes()[self.num_kept :]


@contextlib.contextmanager
def of(folders: Sequence[Path]) -> Iterator[list[Log]]:
    """The logs of cells, by their folders. They are kept however the block ends."""
    here = Path(tempfile.mkdtemp(prefix="fqs_jax_logs_"))
    found = []
    for number, folder in enumerate(folders):
        files.make_folder(folder)
        own = folder / NAME
        found.append(Log(own, here / f"cell_{number}.txt" if paths.is_bucket(folder) else own))
    try:
        yield found
    finally:
        for log in found:
            log.keep()
        if not any(log.new() for log in found):
            shutil.rmtree(here)
