"""A table of texts, on the screen, as Markdown, and as files with its picture and its JSON."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.table import Table

from fqs_jax.runtime import files
from fqs_jax.runtime.errors import printable
from fqs_jax.sweeps.results import mean, standard_error

NAME = "results"  # .json, .md and .png, in the sweep's folder
SETTING = "setting"  # a column behind the variant, where a variant has a bracket
CHOSEN = "Each setting was chosen on validation items, which no other number of the table is measured on."
_TEXT = ("variant", SETTING, "model", "benchmark")  # columns that begin at the left


class Sheet(NamedTuple):
    """Titles and rows of texts, and the sentences that explain them."""

    titles: list[str]
    rows: list[list[str]]
    legend: str


def write(
    root: Path, sheet: Sheet, notes: Sequence[str], content: Mapping[str, Any], figure: Figure
) -> None:
    """Write W/results.json, .md and .png.

    Args:
      root: W, the sweep's working directory.
      notes: sentences below the table.
      content: of the JSON.
    """
    files.write_json(root / f"{NAME}.json", dict(content))
    files.write_text(root / f"{NAME}.md", markdown(sheet, notes))
    files.replace(root / f"{NAME}.png", functools.partial(figure.savefig, format="png"))


def markdown(sheet: Sheet, notes: Sequence[str]) -> str:
    """A Markdown table, and the notes below it."""
    rows = [
        sheet.titles,
        ["---" if title in _TEXT else "---:" for title in sheet.titles],
        *sheet.rows,
    ]
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    written = ["| " + " | ".join(row) + " |" for row in cells]
    below = (f"\n{printable(note)}" for note in notes)
    return "\n".join([*written, "", sheet.legend, *below, ""])


def screen(sheet: Sheet, title: str) -> Table:
    """The table for a terminal."""
    shown = Table(title=title)
    for column in sheet.titles:
        shown.add_column(column, justify="left" if column in _TEXT else "right")
    for row in sheet.rows:
        shown.add_row(*row)
    return shown


def seeds(done: int, planned: int) -> str:
    """The number of seeds that are done."""
    return str(done) if done == planned else f"{done} of {planned}"


def setting(text: str, is_at_edge: bool) -> str:
    """A setting, marked if it lies at the edge of its bracket."""
    return f"{text or '-'}{' (edge)' * is_at_edge}"


def with_error(values: Sequence[float]) -> str:
    """The mean over seeds, with its standard error where there are several."""
    error = standard_error(values)
    return f"{mean(values):.3f}" + ("" if math.isnan(error) else f" \u00b1 {error:.3f}")
