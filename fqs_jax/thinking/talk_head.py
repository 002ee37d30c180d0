"""The talk head, which weighs the prediction after a thought against the plain one.

Three layers read the final-norm hidden states without and with the thought and give one number, the
score. `linear` takes it as the weight, unbounded, and mixes hidden states (published: Quiet-STaR,
section 4.3, as released); `sigmoid` squashes it first; `probability` mixes the predicted
distributions by the squashed score.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

KINDS = ("linear", "sigmoid", "probability")


def init(width: int, key: jax.Array) -> dict[str, Any]:
    """A fresh talk head: hidden layers normal(0.02), last layer 0, so that every score is 0."""
    key_1, key_2 = jax.random.split(key)
    return {
        "hidden_1": _dense(key_1, 2 * width, width),
        "hidden_2": _dense(key_2, width, width),
        "out": {"kernel": jnp.zeros((width, 1))},
    }


def score(head: dict[str, Any], base: jax.Array, after: jax.Array) -> jax.Array:
    """The talk head's output, float32 [...].

    Args:
      head: a `talk_head` tree.
      base: [..., D] without the thought; broadcasts against `after` (one serves all rationales).
      after: [..., D] with it.
    """
    head = jax.tree.map(lambda x: x.astype(after.dtype), head)
    # The first layer reads [base, after] concatenated; split, the base half is computed once for
    # all rationales.
    from_base, from_after = jnp.split(head["hidden_1"]["kernel"], 2)
    hidden = jax.nn.relu(base @ from_base + after @ from_after + head["hidden_1"]["bias"])
    hidden = jax.nn.relu(hidden @ head["hidden_2"]["kernel"] + head["hidden_2"]["bias"])
    return (hidden @ head["out"]["kernel"])[..., 0].astype(jnp.float32)


def weight(score: jax.Array, kind: str) -> jax.Array:
    """The thought's share w of a mixture, from its score."""
    return score if kind == "linear" else jax.nn.sigmoid(score)


def mix_hidden(base: jax.Array, after: jax.Array, weight: jax.Array) -> jax.Array:
    """(1 - w) * base + w * after on hidden states [..., D]; linear in the logits too."""
    weight = weight[..., None].astype(after.dtype)
    return (1 - weight) * base + weight * after


def mix_log_probs(base: jax.Array, after: jax.Array, score: jax.Array) -> jax.Array:
    """log((1 - w) exp(base) + w exp(after)) for w = sigmoid(score); its gradient is finite even
    where w rounds to 0 or 1."""
    return jnp.logaddexp(jax.nn.log_sigmoid(-score) + base, jax.nn.log_sigmoid(score) + after)


def mean_log_probs(log_probs: jax.Array, axis: int) -> jax.Array:
    """The log of the mean of exp(log_probs) along an axis: probability averaged over thoughts."""
    return jax.nn.logsumexp(log_probs, axis) - math.log(log_probs.shape[axis])


def _dense(key: jax.Array, fan_in: int, width: int) -> dict[str, jax.Array]:
    return {"kernel": 0.02 * jax.random.normal(key, (fan_in, width)), "bias": jnp.zeros(width)}
