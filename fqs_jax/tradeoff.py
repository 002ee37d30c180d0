"""Accuracy against the time a token takes: the claim of the method as a picture."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fqs_jax import files
from fqs_jax.comparison import Row

NAME = "tradeoff.png"
# Colours of Okabe and Ito, told apart by the colour-blind too; shapes tell kinds apart without colour.
_STYLES = {
    "base": ("o", "#0072B2"),
    "thinking": ("^", "#D55E00"),
    "ntp": ("*", "#009E73"),
    "control": ("s", "#777777"),
}


def write(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw rows into a PNG file: accuracy, or loss upside down where there is none, so that up is better.

    A row at a fitted temperature has its base's accuracy and time: it is drawn where losses are.
    """
    accuracy = not any(math.isnan(row.accuracy) for row in rows)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [row for row in rows if not accuracy or " at temperature " not in row.name]
    _draw(axes, shown, accuracy)
    axes.set_title(title)
    files.replace(path, functools.partial(figure.savefig, format="png"))


def _draw(axes: Axes, rows: Sequence[Row], accuracy: bool) -> None:
    def height(row: Row) -> float:
        return row.accuracy if accuracy else row.nll

    thinking = [row for row in rows if row.kind == "thinking"]
    axes.plot(
        [row.ms_per_token for row in thinking],
        [height(row) for row in thinking],
        color=_STYLES["thinking"][1],
        alpha=0.4,
        zorder=1,
    )
    for kind, (marker, color) in _STYLES.items():
        members = [row for row in rows if (row.kind or "base") == kind]
        if not members:
            continue
        axes.errorbar(
            [row.ms_per_token for row in members],
            [height(row) for row in members],
            yerr=[row.accuracy_error for row in members] if accuracy else None,
            fmt=marker,
            color=color,
            markersize=11 if marker == "*" else 7,
            capsize=3,
            label=kind,
        )
    low, high = min(map(height, rows)), max(map(height, rows))
    room = max(high - low, 1e-3)
    axes.set_ylim(low - 0.15 * room, high + 0.15 * room)
    axes.set_xlim(0, 1.35 * max(row.ms_per_token for row in rows))  # with room for names
    _name(axes, [(row.ms_per_token, height(row), row.name) for row in rows], room)
    axes.set_xlabel("ms per token, one prompt")
    axes.set_ylabel("accuracy" if accuracy else "loss, nats per token (down is worse)")
    if not accuracy:
        axes.invert_yaxis()
    axes.grid(alpha=0.25)
    axes.legend(title=None, frameon=False, loc="best")


def _name(axes: Axes, points: Sequence[tuple[float, float, str]], room: float) -> None:
    """Write names to the right of their points, pushed apart where they would lie on each other."""
    line = 0.055 * room * 1.3
    widest = axes.get_xlim()[1]
    placed: list[tuple[float, float]] = []
    for x, y, name in sorted(points, key=lambda point: point[1]):
        level = y
        for other_x, other_y in placed:
            if abs(other_x - x) < 0.25 * widest and level - other_y < line:
                level = other_y + line
        placed.append((x, level))
        arrow = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6}
        axes.annotate(
            name,
            (x, y),
            (x + 0.025 * widest, level),
            va="center",
            fontsize=9,
            arrowprops=arrow if level != y else None,
        )
