"""The figure of accuracy against time: points where the numbers are, names that can be read."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.image import imread

from fqs_jax.evaluation import tradeoff
from fqs_jax.evaluation.comparison import Row
from fqs_jax.evaluation.statistics import UNKNOWN, Interval
from fqs_jax.runtime.errors import printable

ACCURACIES = (0.109, 0.109, 0.746, 0.831, 0.807, 0.114, 0.086, 0.154)
ROWS = [
    Row("0", "base", UNKNOWN, 0.024, 1.970, 0.23, 1000, "base"),
    Row("0", "base at temperature 20.08", UNKNOWN, 0.024, 1.947, 0.23, 1000, "base"),
    Row("1", "think-8-2", UNKNOWN, 0.017, 1.217, 0.50, 250, "thinking"),
    Row("2", "think-7-2", UNKNOWN, 0.015, 1.031, 0.61, 150, "thinking"),
    Row("3", "think-6-2", UNKNOWN, 0.016, 1.061, 0.30, 150, "thinking"),
    Row("4", "ntp", UNKNOWN, 0.024, 1.948, 0.23, 300, "student"),
    Row("5", "same-steps", UNKNOWN, 0.021, 1.968, 0.19, 550, "control"),
    Row("6", "same-flops", UNKNOWN, 0.027, 2.161, 0.40, 10281, "control"),
]
ROWS = [  # other ends above than below, as Wilson's are
    dataclasses.replace(row, accuracy=Interval(value, value - 0.05, value + 0.06))
    for row, value in zip(ROWS, ACCURACIES, strict=True)
]
ROWS[1] = dataclasses.replace(ROWS[1], temperature=20.08)
TEXT = [dataclasses.replace(row, accuracy=UNKNOWN, accuracy_error=math.nan) for row in ROWS]
SLOW = [
    dataclasses.replace(row, ms_per_token=row.ms_per_token * (30 if row.kind == "thinking" else 1))
    for row in ROWS
]
ALIKE = [  # as after no training at all, timed at the same speed
    Row(str(i), f"stage-{i}", Interval(0.0857, math.nan, math.nan), 0.0212, 1.96, 0.25, 30, kind)
    for i, kind in enumerate(["base", *["thinking"] * 3, "student", "control", "control"])
]


def drawn(axes):
    """Every marker's place, by the legend entry of its kind."""
    return {points.get_label(): points.get_offsets().data for points in axes.collections}


def test_png(tmp_path):
    tradeoff.write(ROWS, tmp_path / "plot.png", "held-out problems")
    pixels = imread(tmp_path / "plot.png")
    assert pixels.shape[0] > 600 and pixels.shape[1] > 1000 and pixels[..., :3].std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_further_splits_are_not_drawn():
    [axes] = tradeoff.draw([*ROWS, dataclasses.replace(ROWS[2], split="new_wording")], "title").axes
    [alone] = tradeoff.draw(ROWS, "title").axes
    np.testing.assert_array_equal(drawn(axes)["thinking"], drawn(alone)["thinking"])


@pytest.mark.parametrize("rows, value", [(ROWS, "accuracy"), (TEXT, "nll")])
def test_points_are_the_numbers(rows, value):
    [axes] = tradeoff.draw(rows, "title").axes
    if value == "accuracy":  # a temperature changes no answer: there it is the base again
        rows = [row for row in rows if "temperature" not in row.name]
    points = drawn(axes)
    for kind in ("base", "thinking", "student", "control"):
        members = [row for row in rows if row.kind == kind]
        heights = [row.accuracy.value if value == "accuracy" else row.nll for row in members]
        expected = [
            (row.ms_per_token, height) for row, height in zip(members, heights, strict=True)
        ]
        np.testing.assert_allclose(points[kind], expected)
    [line] = [line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_alpha()]
    np.testing.assert_allclose(line.get_xydata(), points["thinking"])  # in the order of stages
    assert [text.get_text() for text in axes.texts] == [row.name for row in rows]
    assert value == "accuracy" or axes.yaxis_inverted()
    assert ("accuracy" if value == "accuracy" else "inverted") in axes.get_ylabel()


def test_bars_are_95_percent_intervals():
    [axes] = tradeoff.draw(ROWS, "title").axes
    assert "95%" in axes.get_ylabel()
    bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    low, high = bars[1].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.696, 0.806))
    [axes] = tradeoff.draw(TEXT, "title").axes
    assert not axes.containers and "95%" not in axes.get_ylabel()


@pytest.mark.parametrize("rows", [ROWS, SLOW, ALIKE])
def test_axes_hold_what_can_be(rows):
    [axes] = tradeoff.draw(rows, "title").axes
    low, high = axes.get_ylim()
    assert 0 <= low < min(row.accuracy.value for row in rows)
    assert max(row.accuracy.value for row in rows) < high <= 1
    assert axes.get_xscale() == ("log" if rows is SLOW else "linear")
    for row in rows:
        assert axes.get_xlim()[0] < row.ms_per_token < axes.get_xlim()[1]


@pytest.mark.parametrize(
    "name", ["$x_$", "a$b", "$", "{\\frac", "[/x]", "\x1b[1m", "a\udcff", "^_\n"]
)
def test_names_are_no_formulas(tmp_path, name):
    rows = [dataclasses.replace(row, name=f"{name} {row.name}") for row in ROWS]
    tradeoff.write(rows, tmp_path / "plot.png", name)
    title = tradeoff.draw(rows, name).axes[0].get_title()
    assert title == printable(name)


@pytest.mark.parametrize("rows", [ROWS, TEXT, SLOW, ALIKE], ids=["answers", "text", "log", "alike"])
def test_names_do_not_overlap_and_lie_inside(rows):
    figure = tradeoff.draw(rows, "title")
    [axes] = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = {}
    for name in axes.texts:
        name.arrow_patch = None  # the box of the text alone
        name.arrowprops = None
        boxes[name.get_text()] = name.get_window_extent(renderer)
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other), (a, b)
    for name, box in boxes.items():
        assert box.x0 >= axes.bbox.x0 and box.x1 <= figure.bbox.x1, name
        assert box.y0 >= axes.bbox.y0 and box.y1 <= figure.bbox.y1, name


def test_legend_shows_kinds_once_and_without_bars():
    figure = tradeoff.draw(ROWS, "title")
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(tradeoff.STYLES)
    assert not any(isinstance(handle, ErrorbarContainer) for handle in legend.legend_handles)


def test_what_cannot_be_drawn_is_left_out(tmp_path):
    broken = dataclasses.replace(TEXT[2], nll=math.nan, name="broken")
    [axes] = tradeoff.draw([TEXT[0], broken], "title").axes
    assert [text.get_text() for text in axes.texts] == ["base"]
    tradeoff.write([broken], tmp_path / "empty.png", "title")
    perfect = dataclasses.replace(ROWS[0], accuracy=Interval(1.0, 0.9, 1.0))
    [axes] = tradeoff.draw([perfect], "title").axes
    assert axes.get_ylim()[1] == 1
