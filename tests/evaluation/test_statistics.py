"""Intervals against their definitions."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from fqs_jax.evaluation import statistics


@pytest.mark.parametrize("right, count", [(0, 9), (9, 9), (3, 20), (500, 1221)])
def test_wilson(right: int, count: int) -> None:
    share, low, high = statistics.wilson(right / count, count)
    assert share == right / count
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    for end in (low, high):  # where the share is 1.96 standard errors away, but at 0 and 1
        if 0 < end < 1:
            error = math.sqrt(end * (1 - end) / count)
            assert abs(right / count - end) / error == pytest.approx(1.96, abs=1e-3)


def test_bootstrap_of_a_mean_against_all_resamplings():
    """Six numbers have 6**6 resamplings; 2,000 random ones give nearly the same percentiles."""
    sample = np.array([0.0, 1.0, 3.0, 4.0, 9.0, 13.0])
    means = [np.mean(drawn) for drawn in itertools.product(sample, repeat=6)]
    found = statistics.bootstrap(np.mean, sample)
    assert found.value == 5
    assert found[1:] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.4)
    assert found == statistics.bootstrap(np.mean, sample)


def test_bootstrap_draws_samples_independently():
    """If both samples shared their draws, the difference would have no spread."""
    sample = np.arange(100.0)
    _, low, high = statistics.bootstrap(
        lambda first, second, axis: first.mean(axis) - second.mean(axis), sample, sample
    )
    error = math.sqrt(2 * sample.var() / 100)
    assert (low, high) == pytest.approx((-1.96 * error, 1.96 * error), rel=0.1)


def test_one_value_has_an_interval_without_a_width():
    assert statistics.bootstrap(np.mean, np.array([0.5])) == (0.5, 0.5, 0.5)


def test_fields_of_intervals_have_the_names_of_files():
    @dataclasses.dataclass
    class Record:
        name: str
        gain: statistics.Interval
        nll: float

    fields = statistics.flat_fields(Record("a", statistics.Interval(0.5, 0.25, 0.75), 1.0))
    assert list(fields.items()) == [
        *(("name", "a"), ("gain", 0.5), ("gain_low", 0.25), ("gain_high", 0.75), ("nll", 1.0))
    ]
