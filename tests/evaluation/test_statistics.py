"""Intervals against what they are defined by."""

import math

import pytest
from scipy.stats import binomtest

from fqs_jax.evaluation import statistics


@pytest.mark.parametrize("right, count", [(0, 9), (9, 9), (3, 20), (500, 1221)])
def test_wilson(right: int, count: int) -> None:
    low, high = statistics.wilson(right / count, count)
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    for end in (low, high):  # where the share is 1.96 standard errors away, but at 0 and 1
        if 0 < end < 1:
            error = math.sqrt(end * (1 - end) / count)
            assert abs(right / count - end) / error == pytest.approx(1.96, abs=1e-3)
