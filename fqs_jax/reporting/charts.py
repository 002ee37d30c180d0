"""Charts as inline SVG. The page's style sheet colours them, so that they follow light and dark mode."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from fqs_jax.evaluation.labels import Box, place_name
from fqs_jax.reporting.markup import escape
from fqs_jax.runtime.errors import visible

MAX_POINTS = 240  # points of a line; more are averaged
CHARACTER = 6.6  # mean width of a character in a label, in units of the drawing
LEAST_SPAN = (
    0.01  # share of a value that the y axis shows above and below it, so that noise looks small
)

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve; `kind` is its class in the style sheet, `a` or `b`."""

    name: str
    kind: str
    points: Sequence[Point]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A point of a scatter plot.

    Attributes:
      kind: `base`, `thinking`, `student` or `control`.
      low, high: ends of its bar; None = no bar.
    """

    name: str
    kind: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Frame:
    """The plotting area and its scales; y values grow upwards, pixels downwards."""

    width: float
    height: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    left: float = 46
    right: float = 12
    top: float = 10
    bottom: float = 36

    def x(self, value: float) -> float:
        """The horizontal place of a value."""
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """The vertical place of a value, from the top."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        bottom = self.height - self.bottom
        return bottom - (value - low) / (high - low) * (bottom - self.top)

    def draw(self, x_label: str, y_label: str = "", x_numbers: bool = True) -> str:
        """Grid, ticks and axis titles."""
        low, high = self.height - self.bottom, self.width - self.right
        parts = []
        for value in self.y_ticks:
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{self.left:.1f} {y:.1f}H{high:.1f}"/>')
            parts.append(_text(self.left - 6, y + 4, f"{value:,g}", "tick end"))
        for value in self.x_ticks if x_numbers else ():
            parts.append(_text(self.x(value), low + 16, f"{value:,g}", "tick middle"))
        middle = (self.left + high) / 2
        parts.append(_text(middle, self.height - 4, x_label, "axis middle"))
        if y_label:
            parts.append(_text(0, self.top - 12, y_label, "axis"))
        return "".join(parts)


def line_chart(lines: Sequence[Line], x_label: str = "step") -> str:
    """Curves over training steps, without points that are not finite; "" if no point is left."""
    curves = [dataclasses.replace(line, points=thinned(_finite(line.points))) for line in lines]
    curves = [line for line in curves if line.points]
    if not curves:
        return ""
    xs, ys = zip(*itertools.chain.from_iterable(line.points for line in curves), strict=True)
    frame = Frame(340, 190, ticks(0, max(xs), 4), ticks(min(ys), max(ys), 4))
    drawn = []
    for line in curves:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        drawn.append(f'<polyline class="line {line.kind}" points="{path}"/>')
        x, y = line.points[-1]
        place = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}"'
        drawn.append(f'<circle class="dot {line.kind}" {place} r="2.5"/>')
    description = "; ".join(
        f"{line.name} from {number(line.points[0][1])} to {number(line.points[-1][1])}"
        for line in curves
    )
    return _svg(
        frame, f"Over {x_label}s: {description}.", frame.draw(x_label) + "".join(drawn), "chart"
    )


def bar_chart(bars: Sequence[tuple[str, float]], description: str, x_label: str) -> str:
    """Named values as bars from zero, those that are not finite without a bar.

    Args:
      description: for screen readers.
    """
    values = [value for _, value in bars if math.isfinite(value)]
    y_ticks = ticks(min([0.0, *values]), max([0.0, *values]), 4)
    frame = Frame(340, 190, (0, len(bars)), y_ticks)
    drawn = [frame.draw(x_label, x_numbers=False)]
    for i, (name, value) in enumerate(bars):
        left, right = frame.x(i + 0.15), frame.x(i + 0.85)
        top, bottom = sorted((frame.y(value if math.isfinite(value) else 0), frame.y(0)))
        size = f'width="{right - left:.1f}" height="{max(1.0, bottom - top):.1f}"'
        drawn.append(f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" {size} rx="2"/>')
        drawn.append(
            _text((left + right) / 2, frame.height - frame.bottom + 16, name, "tick middle")
        )
    return _svg(frame, description, "".join(drawn), "chart")


def share_chart(bars: Sequence[tuple[str, float, str]], description: str) -> str:
    """Shares of a whole as bars one below the other.

    Args:
      bars: name, share from 0 to 1, and what stands behind the bar.
      description: for screen readers.
    """
    row, left, right = 22, 128, 118  # heights and widths, for names and for what stands behind
    frame = Frame(340, row * len(bars), (0, 1), (0, 1), left=left, right=right)
    drawn = []
    for i, (name, share, more) in enumerate(bars):
        end, middle = frame.x(share), row * i + 15
        place = f'x="{left}" y="{row * i + 4}" width="{max(1.0, end - left):.1f}" height="14"'
        drawn.append(_text(left - 6, middle, name, "tick end"))
        drawn.append(f'<rect class="bar" {place} rx="2"/>')
        drawn.append(_text(max(left + 1.0, end) + 6, middle, more, "tick"))
    return _svg(frame, description, "".join(drawn), "chart")


def scatter(marks: Sequence[Mark], x_label: str, y_label: str, width: float, css: str) -> str:
    """Points with their names beside them and error bars; `css` is the drawing's class.

    Args:
      marks: at least one, at finite places; a bar whose ends are not finite is left out.
    """
    marks = [_with_finite_bar(mark) for mark in marks]
    ys = [mark.y * (1 + side * LEAST_SPAN) for mark in marks for side in (-1, 1)]
    ys += [end for mark in marks for end in (mark.low, mark.high) if end is not None]
    x_ticks = ticks(0, 1.05 * max(mark.x for mark in marks), 6 if width > 500 else 4)
    frame = Frame(
        width, 0.23 * width + 200, x_ticks, ticks(min(ys), max(ys), 5), left=58, top=26, bottom=40
    )
    bars, points, names, taken = [], [], [], []
    for mark in marks:
        x, y = frame.x(mark.x), frame.y(mark.y)
        taken.append(Box(x - 7, y - 7, x + 7, y + 7))
        if mark.low is not None and mark.high is not None:
            ends = f"M{x:.1f} {frame.y(mark.low):.1f}V{frame.y(mark.high):.1f}"
            bars.append(f'<path class="error {mark.kind}" d="{ends}"/>')
            taken.append(Box(x - 2, frame.y(mark.high), x + 2, frame.y(mark.low)))
        title = f"{mark.name}: {number(mark.y)} at {number(mark.x)}"
        points.append(f"<g>{_symbol(mark.kind, x, y)}<title>{escape(title)}</title></g>")
    area = Box(frame.left, frame.top, width - 2, frame.height - frame.bottom)
    for mark in sorted(marks, key=lambda mark: -mark.y):
        names.append(_name(mark.name, frame.x(mark.x), frame.y(mark.y), area, taken))
    description = f"{y_label} against {x_label}: " + "; ".join(
        f"{mark.name} {number(mark.y)} at {number(mark.x)}" for mark in marks
    )
    inside = frame.draw(x_label, y_label) + "".join([*bars, *names, *points])
    return _svg(frame, description, inside, css)


def symbol(kind: str) -> str:
    """The symbol of a kind of model, for legends and tables."""
    inside = _symbol(kind, 8, 8)
    return f'<svg class="symbol" viewBox="0 0 16 16" aria-hidden="true">{inside}</svg>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers; the first is at most `low`, the last at least `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(i * step, 12) for i in range(first, last + 1)]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS points: means of neighbours, and the last point unchanged."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = -(-(len(points) - 1) // (MAX_POINTS - 1))
    groups = [points[i : min(i + size, len(points) - 1)] for i in range(0, len(points) - 1, size)]
    means = [tuple(sum(axis) / len(group) for axis in zip(*group, strict=True)) for group in groups]
    return [*((x, y) for x, y in means), points[-1]]


def number(value: float) -> str:
    """The number with three significant digits and commas between thousands."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e6:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3g}" if value == int(value) else f"{value:#.3g}".rstrip(".")


def _with_finite_bar(mark: Mark) -> Mark:
    is_finite = all(end is not None and math.isfinite(end) for end in (mark.low, mark.high))
    return mark if is_finite else dataclasses.replace(mark, low=None, high=None)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _name(name: str, x: float, y: float, area: Box, taken: list[Box]) -> str:
    """The name beside its point, with a thin line between them if they are far apart."""
    place = place_name((x, y), (CHARACTER * len(visible(name)), 14), area, taken, scale=1.2)
    if not place.is_free:
        return ""  # no room; the table below the plot has the name
    left, top, right, bottom = place.box
    taken.append(place.box)
    middle = (top + bottom) / 2
    edge = min(max(x, left - 2), right + 2)
    leader = f'<path class="leader" d="M{x:.1f} {y:.1f}L{edge:.1f} {middle:.1f}"/>'
    return ("" if place.is_near else leader) + _text(left, middle + 4, name, "name")


def _symbol(kind: str, x: float, y: float) -> str:
    """The marker of a kind, as in evaluation/tradeoff.py; kinds differ in shape as well as in colour."""
    star = "l1.7 5.2h5.4l-4.4 3.2l1.7 5.2l-4.4 -3.2l-4.4 3.2l1.7 -5.2l-4.4 -3.2h5.4z"
    shapes = {
        "base": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"',
        "thinking": f'<path d="M{x:.1f} {y - 6.5:.1f}l6 11h-12z"',
        "student": f'<path d="M{x:.1f} {y - 7.5:.1f}{star}"',
        "control": f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"',
    }
    return f'{shapes[kind]} class="mark {kind}"/>'


def _text(x: float, y: float, text: str, css: str, more: str = "") -> str:
    return f'<text class="{css}" {more}x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(frame: Frame, description: str, inside: str, css: str) -> str:
    size = f"0 0 {frame.width:.0f} {frame.height:.0f}"
    label = escape(description)
    return f'<svg class="{css}" viewBox="{size}" role="img" aria-label="{label}">{inside}</svg>'
