"""Places for the names of points in a plot.

The trade-off is drawn twice: by matplotlib as a PNG file, and as SVG in the report. The report follows
light and dark mode and allows no inline styles or links, which matplotlib's SVG contains. Both drawings
share this file's rule for names.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

DISTANCES = (9, 16, 26, 38, 52, 70)  # points from a marker to its name
_DIRECTIONS = ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


class Box(NamedTuple):
    """A rectangle; left < right and low < high, whichever way the drawing's y axis grows."""

    left: float
    low: float
    right: float
    high: float

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.high - self.low)


class Place(NamedTuple):
    """The place of a name.

    Attributes:
      is_near: right beside its marker, so that no line to it is needed.
      is_free: inside the plot, and covers nothing.
    """

    box: Box
    is_near: bool
    is_free: bool


def place_name(
    point: tuple[float, float],
    size: tuple[float, float],
    area: Box,
    taken: Sequence[Box],
    scale: float = 1.0,
) -> Place:
    """The nearest free place beside a point; if none is free, the one that covers least.

    Args:
      point: x, y of the marker's middle.
      size: width and height of the name.
      area: the box that names must lie inside.
      taken: boxes that they must not cover.
      scale: units of the drawing in a point of DISTANCES.
    """
    boxes = [
        _beside(point, size, distance * scale, direction)
        for distance, direction in itertools.product(DISTANCES, _DIRECTIONS)
    ]
    covered = [
        round(box.area - overlap(box, area) + sum(overlap(box, other) for other in taken), 6)
        for box in boxes
    ]
    best = covered.index(min(covered))  # the first, so the nearest, of equally good ones
    return Place(boxes[best], is_near=best < len(_DIRECTIONS), is_free=covered[best] == 0)


def overlap(one: Box, other: Box) -> float:
    """The area of the intersection."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.high, other.high) - max(one.low, other.low)
    return max(width, 0.0) * max(height, 0.0)


def _beside(
    point: tuple[float, float],
    size: tuple[float, float],
    distance: float,
    direction: tuple[int, int],
) -> Box:
    """The box of this size whose nearest side or corner is this far from the point."""
    ends = []
    for middle, length, step in zip(point, size, direction, strict=True):
        start = middle + step * distance / math.hypot(*direction) + (step - 1) / 2 * length
        ends.append((start, start + length))
    (left, right), (low, high) = ends
    return Box(left, low, right, high)
