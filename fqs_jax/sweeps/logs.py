"""Logs of cells: written on this machine, and kept in the cell's folder, which may be in a bucket."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fqs_jax.runtime import buckets, files, paths

NAME = "log.txt"  # in a cell's folder


@dataclasses.dataclass
class Log:
    """The log of a cell.

    Attributes:
      place: its file in the cell's folder.
      here: the file of this machine that the cell's program appends to; the same, unless that is an object.
      num_kept: bytes of `here` that `place` has.
    """

    place: Path
    here: Path
    num_kept: int = 0

    def keep(self) -> None:
        """Write what is new into the object: it is read and written whole, since none can be appended to.

        Raises:
          UserError: the bucket refuses.
        """
        if self.here == self.place or not self.here.exists():
            return
        new = self.here.read_bytes()[self.num_kept :]
        if not new:
            return
        old = b""
        with contextlib.suppress(FileNotFoundError):  # of earlier starts, also on other machines
            old = buckets.read(self.place)
        files.replace(self.place, lambda file: file.write(old + new))
        self.num_kept += len(new)


@contextlib.contextmanager
def of(folders: Sequence[Path]) -> Iterator[list[Log]]:
    """The logs of cells, by their folders; however the block ends, they are kept."""
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        found = []
        for number, folder in enumerate(folders):
            files.make_folder(folder)
            kept = folder / NAME
            here = Path(place, f"cell_{number}.txt") if paths.is_bucket(folder) else kept
            found.append(Log(kept, here))
            stack.callback(found[-1].keep)
        yield found
