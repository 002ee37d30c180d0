"""Stages of a small model, for tests of the memory of a step."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from configs import small_hf
from fqs_jax.curriculum import resolve, row
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.planning import step_plan
from fqs_jax.runtime import device_memory, sharding
from fqs_jax.training import step as step_lib

SMALL = {
    "vocab_size": 512,
    "width": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "mlp_dim": 176,
}


def recipe_of(number: str, changes: dict[str, Any] | None = None) -> Recipe:
    """A stage of configs/small_hf.py on a small model; 0 is plain training."""
    c = small_hf.get_config()
    c.model.update(SMALL)
    c.stage_0 = row("base", "next_token", steps=10)
    c.batch_size, c.data.seq_len = 4, 32
    c.update_from_flattened_dict(changes or {})
    return resolve.find(resolve.recipes(c, step_plan.architecture(c)), number)


def mesh_of(**sizes: int) -> Mesh:
    shape = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    return sharding.make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


def compiled_peak(recipe: Recipe, mesh: Mesh) -> int:
    program = step_lib.program(recipe, mesh)
    with jax.set_mesh(mesh):
        compiled = program.step.lower(program.state, program.batch, np.int32(0)).compile()
    used = device_memory.of_program(compiled, "cpu")
    assert used is not None
    return used.peak
