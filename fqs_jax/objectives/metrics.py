"""Metrics as sums with weights, so that those of microbatches add up to those of the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """A weighted mean: `total` is the sum of weight * value, `weight` the sum of the weights."""

    total: jax.Array
    weight: jax.Array

    @property
    def value(self) -> jax.Array:
        """The mean; 0 if the weights are."""
        return self.total / jnp.where(self.weight > 0, self.weight, 1)


class Spread(NamedTuple):
    """A standard deviation, as sums of weight * value^2, weight * value and weight."""

    squares: jax.Array
    total: jax.Array
    weight: jax.Array

    @property
    def value(self) -> jax.Array:
        """sqrt(E[x^2] - E[x]^2); 0 if the weights are."""
        mean = Mean(self.total, self.weight).value
        square = Mean(self.squares, self.weight).value
        return jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0))


Metrics = dict[str, Mean | Spread]


def scalar(value: jax.Array) -> Mean:
    """A number that every part of a batch computes with the counts of the whole batch."""
    return Mean(value.astype(jnp.float32), jnp.ones((), jnp.float32))


def mean(x: jax.Array, weight: jax.Array) -> Mean:
    """The mean of x by weights that broadcast to it. Where a weight is 0, x may be anything."""
    weight = jnp.broadcast_to(weight, x.shape).astype(jnp.float32)
    return Mean(jnp.sum(jnp.where(weight > 0, x, 0.0) * weight), jnp.sum(weight))


def spread(x: jax.Array, weight: jax.Array) -> Spread:
    """The standard deviation of x by weights that broadcast to it."""
    return Spread(mean(jnp.square(x), weight).total, *mean(x, weight))


def of_rewards(reward: jax.Array, weight: jax.Array) -> Metrics:
    """Mean, standard deviation and positive fraction of rewards."""
    return {
        "reward_mean": mean(reward, weight),
        "reward_std": spread(reward, weight),
        "reward_positive": mean(reward > 0, weight),
    }


def values(metrics: Mapping[str, Mean | Spread]) -> dict[str, jax.Array]:
    """The numbers, float32 scalars."""
    return {name: metric.value for name, metric in metrics.items()}
