"""Scoring a few positions at a time, forward and backward, against all at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.objectives import accumulation, quiet_star
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from tests.tiny_models import model_config, random_params, texts

TOKENS, MASK = texts((7, 5), 7)


def test_a_sum_and_its_gradient() -> None:
    def piece(shared: Any, constant: jax.Array, index: jax.Array) -> Any:
        value = jnp.sin(shared["a"][index]) * constant * shared["b"]
        return value, jax.lax.stop_gradient(value)

    def plain(shared: Any) -> jax.Array:
        return 3 * jnp.sum(jnp.sin(shared["a"]) * 2.0 * shared["b"])

    def ours(shared: Any) -> Any:
        loss, values = accumulation.summed(piece, shared, jnp.float32(2.0), jnp.arange(5))
        return 3 * loss, values

    shared = {"a": jnp.arange(5.0), "b": jnp.float32(0.7)}
    (loss, values), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(shared)
    np.testing.assert_allclose(loss, plain(shared), rtol=1e-6)
    np.testing.assert_allclose(3 * jnp.sum(values), loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), gradient, jax.grad(plain)(shared)
    )


@pytest.mark.parametrize("split", [pytest.param(False, marks=pytest.mark.exhaustive), True])
@pytest.mark.parametrize(
    "remat", ["elementwise", pytest.param("none", marks=pytest.mark.exhaustive)]
)
def test_positions_in_chunks(remat: str, split: bool) -> None:
    """Chunks that do not divide the text, padding, and rationales that are rows or not."""
    thought = ThoughtConfig(n_ahead=5, n_ahead_talk=2)
    model = model_config(remat=remat)
    params, batch = random_params(model), {"tokens": TOKENS, "mask": MASK}

    def step(position_chunk: int) -> Any:
        how = dataclasses.replace(model, position_chunk=position_chunk)
        loss = lambda p: quiet_star.quiet_star_loss(  # noqa: E731
            p,
            batch,
            jax.random.key(0),
            Thinker(how, thought),
            QuietStarConfig(policy_weight=2.0),
            split,
        )
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    for a, b in zip(jax.tree.leaves(step(0)), jax.tree.leaves(step(3)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(a).max())))
