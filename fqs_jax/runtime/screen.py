"""Results on standard output: tables in which no number is cut off, and lines of JSON."""

from __future__ import annotations

from typing import Any, NoReturn

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fqs_jax.runtime import files
from fqs_jax.runtime.errors import printable


def print_json(value: Any) -> None:
    """Print one line of JSON, with null for numbers that JSON lacks: NaN and the infinities."""
    print(files.json_text(value), flush=True)


def print_line(text: str) -> None:
    """Print a line of text, with control characters escaped."""
    print(printable(text), flush=True)


def show(table: Table, width: int | None = None) -> None:
    """Print a table to standard output. Nothing is cut off, however narrow the terminal is.

    Cells are folded between words where that is enough; else the table is wider than the terminal.

    Args:
      width: columns; None = those of the terminal.
    """
    console = _TextConsole(width=width)
    wide = console.options.update(width=10_000)
    for column in table.columns:
        column.overflow = "fold"  # and not an ellipsis
    needed = Measurement.get(console, wide, table)
    if console.width < needed.minimum:
        console.width = needed.maximum
    console.print(table)


class OutputConsole(Console):
    """A console for results."""

    def on_broken_pipe(self) -> NoReturn:
        """Let the program report that nobody reads its results; rich would end it in silence."""
        raise


class _TextConsole(OutputConsole):
    """A console that takes names of stages and files for text, not for markup or control characters."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        options |= {"markup": False, "emoji": False}
        return super().render_str(printable(text, keep="\n"), **options)
