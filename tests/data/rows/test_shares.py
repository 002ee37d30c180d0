"""Mixtures: exact shares, every row of every source, and nothing but the row number decides."""

import collections
import sys

import grain
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.rows.order import Shares


def place(row, weights):
    return Shares([1] * len(weights), weights)[row]


WEIGHTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(1, 300))
def test_shares_are_exact_and_evenly_spread(weights, rows):
    counts: collections.Counter[int] = collections.Counter()
    for row in range(rows):
        source, own_row = place(row, weights)
        assert own_row == counts[source]  # sources take their rows in order, none left out
        counts[source] += 1
        for k, weight in enumerate(weights):
            assert abs(counts[k] - (row + 1) * weight / sum(weights)) < len(weights)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**15))
def test_over_a_whole_period_shares_are_the_weights(weights, period):
    total = sum(weights)
    first = period * total
    counts = collections.Counter(place(row, weights)[0] for row in range(first, first + total))
    assert [counts[k] for k in range(len(weights))] == weights


@given(WEIGHTS, st.integers(0, 10**18))
def test_far_into_a_run(weights, row):
    source, own_row = place(row, weights)
    assert abs(own_row - row * weights[source] / sum(weights)) <= len(weights) + row * 1e-12


def test_examples():
    assert [place(row, [1])[1] for row in range(3)] == [0, 1, 2]
    assert [place(row, [7, 3])[0] for row in range(10)].count(1) == 3
    assert len(Shares([10, 10], [3, 1])) == 42
    assert (
        len(Shares([2**32 - 1, 2**32 - 1], [1, 10**12])) == sys.maxsize
    )  # which is as long as can be


@given(st.lists(st.sampled_from([1, 2, 4, 5, 10]), min_size=2, max_size=4))
def test_the_same_as_grain_where_grain_does_not_round(weights):
    """Grain multiplies weights by 100 / min(weights) and drops the fraction."""
    parts = [grain.MapDataset.range(1000 * k, 1000 * k + 1000) for k in range(len(weights))]
    theirs = grain.MapDataset.mix(parts, [weight / min(weights) for weight in weights])
    ours = grain.MapDataset.select_from_datasets(parts, Shares([1000] * len(parts), weights))
    assert [ours[row] for row in range(300)] == [theirs[row] for row in range(300)]
