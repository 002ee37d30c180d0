"""Progress bars with the estimated time left; lines of text if there is no terminal."""

from __future__ import annotations

import sys
import time
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

from fqs_jax.runtime import processes
from fqs_jax.runtime.errors import printable

QUIET_SECONDS = 15.0  # between lines, if there is no terminal for a bar


class Progress:
    """A progress bar on stderr, or a line every QUIET_SECONDS if stderr is no terminal.

    Only process 0 shows it.

    Args:
      label: the name of the work.
      first: units of work that are done already.
      total: all units of work.
    """

    def __init__(self, label: str, first: int, total: int):
        label = printable(label)
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
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar, or print the last line if it is not printed yet."""
        self._bar.stop()
        if self._bar.disable and self._done > self._printed and not self._quiet:
            self._print()

    def show(self, row: dict[str, Any]) -> None:
        """Show the losses in a row of metrics beside the bar."""
        self._note = _losses(row)
        self._bar.update(self._task, note=f"{self._note}{self._held_out}")

    def show_held_out(self, row: dict[str, Any]) -> None:
        """Show the losses in a row on held-out text after those of training."""
        self._held_out = f"; held out at {row['step']}: {_losses(row)}"
        self._bar.update(self._task, note=f"{self._note}{self._held_out}")

    def note(self, text: str) -> None:
        """Print a line above the bar. Only process 0 prints."""
        if self._quiet:
            return
        if self._bar.disable:
            print(f"note: {text}", file=sys.stderr, flush=True)
        else:
            self._bar.console.print(f"note: {text}", markup=False, highlight=False)

    def advance(self) -> None:
        """Count one unit of work."""
        self.advance_to(self._done + 1)

    def advance_to(self, done: int, total: int | None = None) -> None:
        """Set the units of work that are done and, if given, all of them."""
        self._done, self._total = done, total or self._total
        self._bar.update(self._task, completed=done, total=self._total)
        if (
            self._bar.disable
            and not self._quiet
            and time.monotonic() - self._printed_at > QUIET_SECONDS
        ):
            self._print()

    def _print(self) -> None:
        self._printed_at, self._printed = time.monotonic(), self._done
        elapsed = self._printed_at - self._started
        left = elapsed / max(1, self._done - self._first) * (self._total - self._done)
        times = f"{elapsed:.0f} s, {left:.0f} s left" if left else f"{elapsed:.0f} s"
        line = f"{self._label}: {self._done}/{self._total}, {times}  {self._note}{self._held_out}".rstrip()
        print(line, file=sys.stderr, flush=True)


def _losses(row: dict[str, Any]) -> str:
    """The losses of a row that can be compared."""
    names = [name for name in ("nll_base", "nll_mixed") if row.get(name) is not None]
    return " ".join(f"{name} {row[name]:.3f}" for name in names)
