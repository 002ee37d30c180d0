"""Accuracy against the time a token takes: the claim of the method as a picture."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from fqs_jax.evaluation.comparison import Row
from fqs_jax.runtime import files

NAME = "tradeoff.png"
# Marker and colour of a kind. Colours of Okabe and Ito, told apart by the colour-blind too; shapes tell
# kinds apart without colour.
STYLES = {
    "base": ("o", "#0072B2"),
    "thinking": ("^", "#D55E00"),
    "student": ("*", "#009E73"),
    "control": ("s", "#777777"),
}
_LOG_FROM = 10.0  # slowest to fastest
_DISTANCES = (9, 16, 26, 38, 52, 70)  # points from a marker to its name
_DIRECTIONS = ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


def write(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw rows into a PNG file (see `draw`)."""
    figure = draw(rows, title)
    files.replace(path, functools.partial(figure.savefig, format="png"))


def draw(rows: Sequence[Row], title: str) -> Figure:
    """Accuracy with 95% intervals, or loss upside down where a row has no accuracy: up is better.

    A row at a fitted temperature has its base's accuracy and time, so it is drawn where losses are.
    Rows whose value is not finite cannot be drawn.
    """
    accuracy = not any(math.isnan(row.accuracy) for row in rows)
    if accuracy:
        rows = [row for row in rows if not _is_scaled(row)]
    rows = [row for row in rows if math.isfinite(_height(row, accuracy))]
    figure = Figure(figsize=(7, 4.5), dpi=200, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel("milliseconds per generated token, one prompt")
    axes.set_ylabel(
        "accuracy (bars: 95% interval over items)"
        if accuracy
        else "loss, nats per token (inverted: up is better)"
    )
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        _draw_points(axes, rows, accuracy)
        _set_limits(axes, rows, accuracy)
        if len({row.kind for row in rows}) > 1:
            figure.legend(loc="outside lower center", ncols=len(STYLES), frameon=False)
        names = [_name(axes, row, accuracy) for row in rows]
        canvas.draw()  # lays out; from here on places are known
        figure.set_layout_engine("none")
        _spread(axes, names, list(_obstacles(axes, rows, accuracy)), canvas.get_renderer())
    return figure


def _is_scaled(row: Row) -> bool:
    return row.temperature != 1


def _height(row: Row, accuracy: bool) -> float:
    return row.accuracy if accuracy else row.nll


def _interval(row: Row, accuracy: bool) -> tuple[float, float]:
    """Ends of the bar; losses have none."""
    if accuracy and math.isfinite(row.accuracy_low):
        return row.accuracy_low, row.accuracy_high
    return _height(row, accuracy), _height(row, accuracy)


def _points(rows: Iterable[Row], accuracy: bool) -> np.ndarray:
    """[rows, 2]: time, and accuracy or loss."""
    return np.array([(row.ms_per_token, _height(row, accuracy)) for row in rows]).reshape(-1, 2)


def _draw_points(axes: Axes, rows: Sequence[Row], accuracy: bool) -> None:
    """Markers with intervals, a legend entry a kind, and a line through the thinking stages."""
    for kind, (marker, color) in STYLES.items():
        members = [row for row in rows if row.kind == kind]
        if not members:
            continue
        x, y = _points(members, accuracy).T
        if accuracy:
            errors = np.abs([_interval(row, True) for row in members] - y[:, None]).T
            axes.errorbar(x, y, errors, fmt="none", ecolor=color, elinewidth=1.2, capsize=3)
        if kind == "thinking":
            axes.plot(x, y, color=color, alpha=0.45, linewidth=1.5, zorder=1.5)
        size = 110 if marker == "*" else 45
        faces = ["white" if _is_scaled(row) else color for row in members]
        axes.scatter(x, y, size, faces, marker=marker, edgecolors=color, label=kind, zorder=3)
    for handle in axes.collections:
        handle.set_clip_on(False)  # at an accuracy of 0 or 1 half of it lies outside


def _set_limits(axes: Axes, rows: Sequence[Row], accuracy: bool) -> None:
    points = _points(rows, accuracy)
    ends = [end for row in rows for end in _interval(row, accuracy)]
    low, high = min(ends), max(ends)
    room = 0.08 * max(high - low, 1e-3)
    if accuracy:
        axes.set_ylim(max(0.0, low - room), min(1.0, high + room))
    else:
        axes.set_ylim(high + room, low - room)
    fastest, slowest = float(points[:, 0].min()), float(points[:, 0].max())
    if fastest > 0 and slowest > _LOG_FROM * fastest:
        axes.set_xscale("log")
        axes.set_xlim(fastest / 1.6, slowest * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, max(1.15 * slowest, 1e-9))


def _name(axes: Axes, row: Row, accuracy: bool) -> Annotation:
    """The row's name, to be placed, with a thin line to its point."""
    return axes.annotate(
        row.name,
        (row.ms_per_token, _height(row, accuracy)),
        (0, 0),
        textcoords="offset points",
        fontsize=8.5,
        arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkB": 4},
    )


def _obstacles(axes: Axes, rows: Sequence[Row], accuracy: bool) -> Iterable[Bbox]:
    """What names must not lie on: markers, intervals, the line between thinking stages."""
    to_pixels, around = axes.transData.transform, axes.figure.dpi / 72 * 4.5
    for row in rows:
        x, y = row.ms_per_token, _height(row, accuracy)
        yield Bbox(to_pixels([(x, end) for end in _interval(row, accuracy)])).padded(around / 2)
        yield Bbox(to_pixels([(x, y), (x, y)])).padded(around)
    thinking = [row for row in rows if row.kind == "thinking"]
    for a, b in itertools.pairwise(to_pixels(_points(thinking, accuracy))):
        for share in np.linspace(0, 1, 40):
            yield Bbox([a + share * (b - a)] * 2).padded(1)


def _spread(
    axes: Axes, names: Sequence[Annotation], taken: list[Bbox], renderer: RendererAgg
) -> None:
    """Put each name at the nearest free place beside its point, from the left-most point on."""
    inside = axes.bbox
    for name in sorted(names, key=lambda name: name.xy):
        best, least = (0, _DIRECTIONS[0]), math.inf
        for distance, direction in itertools.product(_DISTANCES, _DIRECTIONS):
            box = _place(name, distance, direction, renderer)
            outside = box.width * box.height - _overlap(box, inside)
            covered = outside + sum(_overlap(box, other) for other in taken)
            if covered < least:
                best, least = (distance, direction), covered
            if covered == 0:
                break
        taken.append(_place(name, *best, renderer))
        if best[0] == _DISTANCES[0] and name.arrow_patch is not None:
            name.arrow_patch.set_visible(False)  # near enough to need no line


def _place(
    name: Annotation, distance: float, direction: tuple[int, int], renderer: RendererAgg
) -> Bbox:
    """Move a name; returns the pixels that its text then covers."""
    across, up = direction
    scale = distance / math.hypot(across, up)
    name.set_position((across * scale, up * scale))
    name.set(
        horizontalalignment={1: "left", 0: "center", -1: "right"}[across],
        verticalalignment={1: "bottom", 0: "center", -1: "top"}[up],
    )
    name.update_positions(renderer)
    return Text.get_window_extent(name, renderer)  # without the line to the point


def _overlap(a: Bbox, b: Bbox) -> float:
    """Area of the intersection."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)
