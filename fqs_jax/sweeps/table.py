"""The table of a sweep on a built-in task, and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fqs_jax.evaluation.tradeoff import STYLES
from fqs_jax.runtime.errors import printable
from fqs_jax.sweeps import sheet as sheet_lib
from fqs_jax.sweeps.results import Line, mean, standard_error
from fqs_jax.sweeps.sheet import SETTING, Sheet

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
LEGEND = (
    "Means over seeds \u00b1 standard error over seeds. Tokens and FLOPs are those of all training from "
    "random parameters, or a checkpoint, to the model, with its teachers and their scores; tokens include "
    "padding; after the base, without the plain first stage."
)


def sheet(table: Sequence[Line]) -> Sheet:
    """The table as texts, with a column of settings if one of its variants has a bracket."""
    if not any(line.setting for line in table):
        return Sheet(list(COLUMNS), list(map(texts, table)), LEGEND)
    rows = []
    for line in table:
        variant, *others = texts(line)
        rows.append([variant, sheet_lib.setting(line.setting, line.is_at_edge), *others])
    return Sheet([COLUMNS[0], SETTING, *COLUMNS[1:]], rows, f"{LEGEND} {sheet_lib.CHOSEN}")


def texts(line: Line) -> list[str]:
    """The text of a line in each column."""
    seeds = sheet_lib.seeds(len(line.seeds), line.planned)
    if not line.seeds:
        return [line.variant, "not done yet", seeds, *["-"] * (len(COLUMNS) - 3)]
    return [
        line.variant,
        line.model,
        seeds,
        sheet_lib.with_error(line.accuracy),
        f"{min(line.accuracy):.3f}..{max(line.accuracy):.3f}",
        sheet_lib.with_error(line.nll),
        f"{line.tokens:,}",
        f"{line.flops:.2e}",
        f"{line.after_base_flops:.2e}" if line.after_base_flops else "0",
    ]


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
