"""95% intervals of what was counted or drawn."""

from __future__ import annotations

import math

import numpy as np

_Z = 1.959964  # standard deviations to either side that hold 95% of a normal distribution


def wilson(share: float, count: int) -> tuple[float, float]:
    """Of a share of `count` items (Wilson 1927); not empty at 0 and 1, and within them.

    With several seeds averaged it errs on the wide side: averages vary less than single answers.
    """
    z2 = _Z**2 / count
    middle = share + z2 / 2
    half = math.sqrt(max(0.0, z2 * share * (1 - share) + z2**2 / 4))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def percentile(resampled: np.ndarray) -> tuple[float, float]:
    """Of a statistic, from its values on resampled data (percentile bootstrap)."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
