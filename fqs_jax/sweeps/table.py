"""The table of a sweep, on the screen and as files: JSON, Markdown and a picture."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from fqs_jax.evaluation.tradeoff import STYLES
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import printable
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.results import Line, as_json, mean, standard_error

NAME = "results"  # .json, .md and .png, in the sweep's folder
SETTING = "setting"  # behind the variant, where a variant has a bracket
COLUMNS = (
    "variant",
    "model",
    "seeds",
    "accuracy",
    "least..most",
    "NLL",
    "tokens",
    "FLOPs",
    "after the base",
)
_TEXT = ("variant", SETTING, "model")  # columns that begin at the left


def write(
    root: Path,
    table: Sequence[Line],
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any] | None],
    notes: Sequence[str],
    command: str,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write W/results.json, .md and .png.

    Args:
      root: W, the sweep's working directory.
      table: lines of the table.
      cells: all cells of the sweep.
      results: one for each cell; None = not done.
      notes: sentences below the table.
      command: command line that makes the table.
      more: further parts of the JSON.
    """
    content = {"command": command, "notes": list(notes), "lines": [as_json(line) for line in table]}
    missing = [c.number for c, r in zip(cells, results, strict=True) if r is None]
    content |= {"missing_cells": missing} | dict(more or {})
    files.write_json(root / f"{NAME}.json", content)
    files.write_text(root / f"{NAME}.md", markdown(table, notes))
    figure = draw(table)
    files.replace(root / f"{NAME}.png", functools.partial(figure.savefig, format="png"))


def columns(table: Sequence[Line]) -> list[str]:
    """The titles of the columns that a table needs."""
    first, *others = COLUMNS
    return [first, *([SETTING] if any(line.setting for line in table) else []), *others]


def texts(line: Line, with_setting: bool = False) -> list[str]:
    """The text of a line in each column."""
    done = len(line.seeds)
    seeds = str(done) if done == line.planned else f"{done} of {line.planned}"
    setting = [f"{line.setting or '-'}{' (edge)' * line.is_at_edge}"] if with_setting else []
    if not done:
        numbers = ["-"] * (len(COLUMNS) - 3)
        return [line.variant, *setting, "not done yet", seeds, *numbers]
    return [
        line.variant,
        *setting,
        line.model,
        seeds,
        _with_error(line.accuracy),
        f"{min(line.accuracy):.3f}..{max(line.accuracy):.3f}",
        _with_error(line.nll),
        f"{line.tokens:,}",
        f"{line.flops:.2e}",
        f"{line.after_base_flops:.2e}" if line.after_base_flops else "0",
    ]


def _with_error(values: Sequence[float]) -> str:
    error = standard_error(values)
    return f"{mean(values):.3f}" + ("" if math.isnan(error) else f" \u00b1 {error:.3f}")


def markdown(table: Sequence[Line], notes: Sequence[str]) -> str:
    """A Markdown table, and the notes below it."""
    titles = columns(table)
    rows = [
        titles,
        ["---" if title in _TEXT else "---:" for title in titles],
        *(texts(line, SETTING in titles) for line in table),
    ]
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    written = ["| " + " | ".join(row) + " |" for row in cells]
    legend = LEGEND + (f" {CHOSEN}" if SETTING in titles else "")
    below = (f"\n{printable(note)}" for note in notes)
    return "\n".join([*written, "", legend, *below, ""])


LEGEND = (
    "Means over seeds \u00b1 standard error over seeds. Tokens and FLOPs are those of all training from "
    "random parameters to the model, with its teachers and their scores; after the base, without the "
    "plain first stage."
)
CHOSEN = "Each setting was chosen on validation items, which no other number of the table is measured on."


def screen(table: Sequence[Line], title: str) -> Table:
    """The table for a terminal."""
    shown = Table(title=title)
    titles = columns(table)
    for column in titles:
        shown.add_column(column, justify="left" if column in _TEXT else "right")
    for line in table:
        shown.add_row(*texts(line, SETTING in titles))
    return shown


def draw(table: Sequence[Line]) -> Figure:
    """A picture of accuracies: one row for each line, one dot for each seed, the mean ± one standard error.

    A base at its best temperature is left out, because its answers are those of the base.
    """
    table = [
        line for line in table if line.seeds and not line.model.endswith("at its best temperature")
    ]
    figure = Figure(figsize=(8, 1.3 + 0.34 * max(1, len(table))), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for y, line in enumerate(table):
        _, color = STYLES.get(line.kind, ("", "#000000"))
        spread = np.linspace(-0.18, 0.18, len(line.accuracy)) if len(line.accuracy) > 1 else [0.0]
        axes.scatter(line.accuracy, y + np.array(spread), 14, color, alpha=0.45, linewidths=0)
        error = standard_error(line.accuracy)
        axes.errorbar(
            mean(line.accuracy),
            y,
            xerr=None if math.isnan(error) else error,
            fmt="|",
            color=color,
            markersize=13,
            markeredgewidth=2,
            elinewidth=2,
            capsize=0,
        )
    names = [printable(f"{line.variant}: {line.model}") for line in table]
    axes.set_yticks(range(len(table)), names, parse_math=False)  # a name with $ is no formula
    axes.set_ylim(len(table) - 0.5, -0.5)
    chances = {line.chance for line in table if not math.isnan(line.chance)}
    if len(chances) == 1:
        chance = chances.pop()
        axes.axvline(chance, color="#999999", linewidth=1, linestyle=":", zorder=0)
        axes.annotate(
            "chance",
            (chance, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#777777",
        )
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy (dots: seeds; line: mean; bar: \u00b1 1 standard error over seeds)")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for y in range(1, len(table)):
        if table[y].variant != table[y - 1].variant:
            axes.axhline(y - 0.5, color="#cccccc", linewidth=0.8)
    return figure
