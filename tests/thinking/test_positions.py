"""Choosing positions: how many, how often each, and that estimates are right on average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.thinking import positions

scores = st.lists(
    st.one_of(st.just(0.0), st.floats(1 / 128, 100, width=32)), min_size=1, max_size=40
)


@given(scores, st.integers(1, 12))
def test_probabilities(row: list[float], count: int) -> None:
    score = np.array([row], np.float32)
    found = np.asarray(positions.probabilities(jnp.asarray(score), count))[0]
    possible = score[0] > 0
    assert (found[~possible] == 0).all() and (found <= 1).all()
    assert found.sum() == pytest.approx(min(count, possible.sum()), rel=1e-4)
    below = possible & (found < 1)
    if below.any():  # one factor for all that are below 1, which would lift no other beyond it
        factor = found[below] / score[0][below]
        np.testing.assert_allclose(factor, factor[0], rtol=1e-3)
        assert (score[0][possible & ~below] * factor[0] >= 1 - 1e-3).all()


@given(scores, st.integers(1, 12), st.integers(0, 99))
def test_exactly_so_many_are_taken(row: list[float], count: int, seed: int) -> None:
    score = jnp.asarray([row, row], jnp.float32)
    count = min(count, len(row))
    index, weight = map(np.asarray, positions.choose(jax.random.key(seed), score, count))
    assert index.shape == weight.shape == (2, count)
    taken = weight > 0
    possible = int((np.array(row) > 0).sum())
    # Rounding may lose one where the sum of probabilities is just below a whole number.
    assert (np.abs(taken.sum(1) - min(count, possible)) <= 1).all()
    for i, t in zip(index, taken, strict=True):
        assert len(set(i)) == count
        assert (np.diff(i[t]) > 0).all()
        assert (np.array(row)[i[t]] > 0).all()


def test_estimates_are_right_on_average() -> None:
    """A sum over all positions, from 3 of them, over 4,000 choices; with and without equal scores."""
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(2, 1, (1, 11)), jnp.float32)
    for score in (np.ones((1, 11)), rng.uniform(0.3, 3, (1, 11)) * (np.arange(11) != 4)):
        score = jnp.asarray(score, jnp.float32)

        def estimate(key: jax.Array, score: jax.Array = score) -> jax.Array:
            index, weight = positions.choose(key, score, 3)
            return jnp.sum(jnp.take_along_axis(values, index, axis=1) * weight)

        found = np.asarray(jax.vmap(estimate)(jax.random.split(jax.random.key(0), 4000)))
        expected = float(jnp.sum(values * (score > 0)))
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found))
        assert found.std() > 0.01 * expected


def test_a_choice_is_of_the_row_and_not_of_its_batch() -> None:
    key, score = jax.random.key(3), jnp.ones((4, 20))
    whole = positions.choose(key, score, 5)
    part = positions.choose(key, score[:2], 5, row_B=jnp.array([1, 3]))
    np.testing.assert_array_equal(whole.index_BxP[jnp.array([1, 3])], part.index_BxP)
    assert len({tuple(row) for row in np.asarray(whole.index_BxP)}) > 1
