"""The choice of the text positions at which to think, if not at all.

A loss over all positions is estimated from a few: each position t is taken with a known probability
pi_t and counts 1 / pi_t, so that the estimate is right on average whatever the probabilities are
(Horvitz and Thompson, 1952). Systematic sampling takes exactly P of them, spread over the row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

KINDS = ("uniform", "high_entropy")
_ROUNDS = 8  # of moving probability above 1 to other positions; two or three are usually enough


class Positions(NamedTuple):
    """Chosen text positions of each row.

    Attributes:
      index_BxP: int32, increasing where the weight is above 0.
      weight_BxP: float32, 1 / pi; 0 at the end of rows with fewer positions worth thinking at.
    """

    index_BxP: jax.Array
    weight_BxP: jax.Array


def everywhere(rows: int, length: int) -> Positions:
    """All positions of each row."""
    index_BxT = jnp.broadcast_to(jnp.arange(length), (rows, length))
    return Positions(index_BxT, jnp.ones((rows, length)))


def choose(
    key: jax.Array, score_BxT: jax.Array, count: int, row_B: jax.Array | None = None
) -> Positions:
    """Take `count` positions of each row with probabilities proportional to a score, at most 1.

    Args:
      score_BxT: float32, 0 or more; positions with 0 are never taken.
      row_B: number of each row in the whole batch; None = 0, 1, ...
    """
    B, T = score_BxT.shape
    row_B = jnp.arange(B) if row_B is None else row_B
    probability_BxT = probabilities(score_BxT, count)
    start_Bx1 = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (1,)))(row_B)
    # A position is taken where the running sum of probabilities passes start, start + 1, ...
    passed_BxT = jnp.floor(jnp.cumsum(probability_BxT, axis=1) + start_Bx1)
    taken_BxT = passed_BxT > jnp.pad(passed_BxT, ((0, 0), (1, 0)))[:, :T]
    order_BxT = jnp.argsort(jnp.where(taken_BxT, 0, T) + jnp.arange(T), axis=1)
    index_BxP = order_BxT[:, :count].astype(jnp.int32)
    weight_BxT = jnp.where(taken_BxT, 1 / jnp.where(taken_BxT, probability_BxT, 1.0), 0.0)
    return Positions(index_BxP, jnp.take_along_axis(weight_BxT, index_BxP, axis=1))


def probabilities(score_BxT: jax.Array, count: int) -> jax.Array:
    """min(1, c * score) with c such that they sum to `count`, or to all positions with a score if
    those are fewer; float32 [B, T]."""

    def spread(_: int, probability: jax.Array) -> jax.Array:
        full = probability >= 1
        left = count - jnp.sum(full, axis=1, keepdims=True)
        others = jnp.sum(jnp.where(full, 0.0, score_BxT), axis=1, keepdims=True)
        share = jnp.where(others > 0, left / jnp.where(others > 0, others, 1.0), 0.0)
        return jnp.where(full, 1.0, jnp.maximum(score_BxT * share, probability))

    none = jnp.zeros_like(score_BxT, dtype=jnp.float32)
    return jnp.minimum(jax.lax.fori_loop(0, _ROUNDS, spread, none), 1.0)
