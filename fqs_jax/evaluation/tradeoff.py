"""The trade-off picture: accuracy, or loss, against the time that a generated token takes."""

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

from fqs_jax.evaluation.comparison import TEST, Row
from fqs_jax.evaluation.labels import Box, place_name
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import printable

NAME = "tradeoff.png"
# Marker and colour of each kind of model. The colours are Okabe and Ito's, which colour-blind people can
# tell apart; the shapes work without colour.
STYLES = {
    "base": ("o", "#0072B2"),
    "thinking": ("^", "#D55E00"),
    "student": ("*", "#009E73"),
    "control": ("s", "#777777"),
}
_LOG_FROM = 10.0  # times the fastest: a slower model makes the time axis logarithmic


def write(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw rows into a PNG file (see `draw`)."""
    figure = draw(rows, title)
    files.replace(path, functools.partial(figure.savefig, format="png"))


def draw(rows: Sequence[Row], title: str) -> Figure:
    """The figure: accuracy with 95% intervals, or an inverted loss axis if a row has no accuracy.

    Up is always better. A row at a fitted temperature has its base's accuracy and time, so it is drawn
    only in the plot of losses. Rows of further splits, and those whose value is not finite, are left out.
    """
    rows = [row for row in rows if row.split == TEST]
    accuracy = not any(math.isnan(row.accuracy.value) for row in rows)
    if accuracy:
        rows = [row for row in rows if not _is_scaled(row)]
    rows = [row for row in rows if math.isfinite(_height(row, accuracy))]
    figure = Figure(figsize=(7, 4.5), dpi=200, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(printable(title), parse_math=False)  # a name with $ is no formula
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
        canvas.draw()  # computes the layout, which the places of names depend on
        figure.set_layout_engine("none")
        _place_names(axes, names, list(_obstacles(axes, rows, accuracy)), canvas.get_renderer())
    return figure


def _is_scaled(row: Row) -> bool:
    return row.temperature != 1


def _height(row: Row, accuracy: bool) -> float:
    return row.accuracy.value if accuracy else row.nll


def _interval(row: Row, accuracy: bool) -> tuple[float, float]:
    """Ends of the error bar; both are the value itself where there is none, as for losses."""
    if accuracy and math.isfinite(row.accuracy.low):
        return row.accuracy.low, row.accuracy.high
    return _height(row, accuracy), _height(row, accuracy)


def _points(rows: Iterable[Row], accuracy: bool) -> np.ndarray:
    """[rows, 2]: time, and accuracy or loss."""
    return np.array([(row.ms_per_token, _height(row, accuracy)) for row in rows]).reshape(-1, 2)


def _draw_points(axes: Axes, rows: Sequence[Row], accuracy: bool) -> None:
    """Markers with error bars, one legend entry for each kind, and a line through the thinking stages."""
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
        handle.set_clip_on(False)  # at an accuracy of 0 or 1 half of the marker lies outside


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
    """The row's name with a thin line to its point; `_place_names` moves it."""
    return axes.annotate(
        printable(row.name),
        (row.ms_per_token, _height(row, accuracy)),
        (0, 0),
        textcoords="offset points",
        horizontalalignment="left",
        verticalalignment="bottom",
        fontsize=8.5,
        parse_math=False,
        arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkB": 4},
    )


def _obstacles(axes: Axes, rows: Sequence[Row], accuracy: bool) -> Iterable[Box]:
    """Boxes that names must not cover: markers, error bars, the line between thinking stages; in pixels."""
    to_pixels, around = axes.transData.transform, axes.figure.dpi / 72 * 4.5

    def box(points: Sequence[tuple[float, float]] | np.ndarray, padding: float) -> Box:
        return Box(*np.min(points, axis=0) - padding, *np.max(points, axis=0) + padding)

    for row in rows:
        x = row.ms_per_token
        yield box(to_pixels([(x, end) for end in _interval(row, accuracy)]), around / 2)
        yield box(to_pixels([(x, _height(row, accuracy))]), around)
    thinking = [row for row in rows if row.kind == "thinking"]
    for a, b in itertools.pairwise(to_pixels(_points(thinking, accuracy))):
        for share in np.linspace(0, 1, 40):
            yield box([a + share * (b - a)], 1)


def _place_names(
    axes: Axes, names: Sequence[Annotation], taken: list[Box], renderer: RendererAgg
) -> None:
    """Put each name beside its point, starting with the left-most point."""
    pixels = axes.figure.dpi / 72  # in a point
    for name in sorted(names, key=lambda name: name.xy):
        extent = Text.get_window_extent(name, renderer)  # without the line to the point
        x, y = axes.transData.transform(name.xy)
        place = place_name((x, y), extent.size, Box(*axes.bbox.extents), taken, pixels)
        name.set_position(((place.box.left - x) / pixels, (place.box.low - y) / pixels))
        taken.append(place.box)
        if place.is_near and name.arrow_patch is not None:
            name.arrow_patch.set_visible(False)
