"""Training states of a few numbers, for tests of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fqs_jax.runs.checkpoints import Checkpoints


def state_at(step: int) -> tuple[Any, Any]:
    """Parameters of two dtypes, and an optimiser state with every part that ours has."""
    rng = np.random.default_rng(step)
    params = {
        "lm": {"w": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32), "b": jnp.arange(16.0)},
        "thought": {"start": jnp.asarray(rng.normal(size=16), jnp.bfloat16)},
    }
    transform = optax.apply_if_finite(optax.adamw(0.1), 3)
    _, state = transform.update(params, transform.init(params), params)
    return params, state


def abstract(tree: Any, sharding: Any = None) -> Any:
    """The abstract tree with the given placement; by default on the first device."""
    place = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def abstract_state(step: int = 0, sharding: Any = None) -> tuple[Any, Any]:
    return abstract(state_at(step), sharding)


def assert_same(a: Any, b: Any) -> None:
    """Assert that two trees are equal to the bit."""
    chex.assert_trees_all_equal_structs(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(folder: Path, *steps: int, keep: int = 2) -> Path:
    """Save a checkpoint of each given step."""
    with Checkpoints(folder, keep) as saved:
        for step in steps:
            saved.save(step, *state_at(step), {"steps": step})
    return folder


def assert_newest(folder: Path, step: int) -> None:
    """Assert that the newest intact checkpoint is that of the step, to the bit."""
    with Checkpoints(folder) as saved:
        found = saved.newest(*abstract_state())
    assert found is not None and found[0] == step and found[3] == {"steps": step}
    assert_same(found[1:3], state_at(step))
