"""Progress bars with the estimated time left; lines of text if there is no terminal."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from fqs_jax.runtime import paths, processes, sizes
from fqs_jax.runtime.errors import printable
from fqs_jax.runtime.notes import note
from fqs_jax.runtime.stderr import say

QUIET_SECONDS = 15.0  # between lines, if there is no terminal for a bar
LONG_SECONDS = 2.0  # what takes longer is worth a bar or a line
_LOSSES = ("nll_base", "nll_mixed", "distill/forward_kl")


class Progress:
    """A progress bar on stderr, or a line every QUIET_SECONDS if stderr is no terminal.

    Only process 0 shows it.

    Args:
      label: the name of the work.
      first: units of work that are done already.
      total: all units of work.
      after: seconds before anything is shown; nothing at all if the work ends earlier.
    """

    def __init__(self, label: str, first: int, total: int, after: float = 0.0):
        label = printable(label)
        self._after, self._total = after, total
        self._label, self._first, self._total, self._done = label, first, total, first
        self._started = self._printed_at = time.monotonic()
        self._printed, self._note, self._held_out = first, "", ""
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            disable=not (processes.is_main() and Console(stderr=True).is_terminal),
        )
        self._quiet = not processes.is_main()
        self._task = self._bar.add_task(label, total=total, completed=first, note="")

    def __enter__(self) -> Progress:
        if not self._after:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar, or print the last line if it is not printed yet."""
        self._bar.stop()
        if self._is_early():
            return
        if self._bar.disable and self._done > self._printed and not self._quiet:
            self._print()

    def show(self, row: dict[str, Any]) -> None:
        """Show the losses in a row of metrics beside the bar."""
        self._note = " ".join(losses(row))
        self._bar.update(self._task, note=f"{self._note}{self._held_out}")

    def show_held_out(self, loss: float | None) -> None:
        """Show the last loss on held-out text after those of training."""
        self._held_out = "" if loss is None else f", held out {loss:.3f}"
        self._bar.update(self._task, note=f"{self._note}{self._held_out}")

    def note(self, text: str) -> None:
        """Print a line above the bar. Only process 0 prints."""
        if self._quiet:
            return
        if self._bar.disable:
            say(f"note: {text}")
        else:
            self._bar.console.print(f"note: {text}", markup=False, highlight=False)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say what is waited for before the first unit of work, whose time does not count for the rest.

        Beside the bar at once; without a terminal as a line, if it takes long.
        """
        self._bar.update(self._task, note=text)
        line = threading.Timer(LONG_SECONDS, self._say, [text])
        line.daemon = True
        if self._bar.disable and not self._quiet:
            line.start()
        try:
            yield
        finally:
            line.cancel()
            self._bar.reset(self._task, total=self._total, completed=self._first, note=self._note)
            self._started = self._printed_at = time.monotonic()

    def advance(self) -> None:
        """Count one unit of work."""
        self.advance_to(self._done + 1)

    def advance_to(self, done: int, total: int | None = None) -> None:
        """Set the units of work that are done and, if given, all of them."""
        self._done, self._total = done, total or self._total
        self._bar.update(self._task, completed=done, total=self._total)
        if self._is_early():
            return
        if self._after:
            self._bar.start()
        if (
            self._bar.disable
            and not self._quiet
            and time.monotonic() - self._printed_at > QUIET_SECONDS
        ):
            self._print()

    def _is_early(self) -> bool:
        return time.monotonic() - self._started < self._after

    def _say(self, text: str) -> None:
        say(f"{self._label}: {text}")

    def _print(self) -> None:
        self._printed_at, self._printed = time.monotonic(), self._done
        elapsed = self._printed_at - self._started
        left = elapsed / max(1, self._done - self._first) * (self._total - self._done)
        times = f"{elapsed:.0f} s, {left:.0f} s left" if left else f"{elapsed:.0f} s"
        line = f"{self._label}: {self._done}/{self._total}, {times}  {self._note}{self._held_out}".rstrip()
        say(line)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say that a file or folder is read, and how large it is, if that takes long."""

    def say() -> None:
        size = "" if paths.is_bucket(path) else f", {sizes.shown(_bytes(path))}"
        note(f"reading {path}{size}")

    line = threading.Timer(LONG_SECONDS, say)
    line.daemon = True
    line.start()
    try:
        yield
    finally:
        line.cancel()


def _bytes(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; what vanishes meanwhile counts nothing."""
    found = 0
    for file in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            found += file.stat().st_size if file.is_file() else 0
    return found


def losses(row: Mapping[str, Any]) -> list[str]:
    """The losses of a row of metrics, as in "nll_base 1.234"; the distance from its teacher of a student
    that reads no labels."""
    shown = {name: row[name] for name in _LOSSES if isinstance(row.get(name), int | float)}
    if len(shown) > 1:
        shown.pop("distill/forward_kl", None)
    return [f"{name} {value:.3f}" for name, value in shown.items()]
