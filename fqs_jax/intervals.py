"""Intervals of what was counted."""

from __future__ import annotations

import math

_Z = 1.959964  # standard deviations to either side that hold 95% of a normal distribution


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` items (Wilson 1927); not empty at 0 and 1, and within them."""
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = (
        _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    )
    return max(0.0, centre - half), min(1.0, centre + half)
