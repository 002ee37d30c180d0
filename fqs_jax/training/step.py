"""The training step: a pure function of (state, batch, step number), compiled for a mesh.

training/loop.py runs the program that planning/step_plan.py compiles ahead of time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from optax.microbatching import AccumulationType, microbatch

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.objective import Loss
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.model import lora, placement
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.runtime import seeds, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.training import optimizer as optimizer_lib


class State(NamedTuple):
    """The state that a step reads and writes: what is trained, and the optimizer's state of it.

    With adapters that is adapters and thoughts; the decoder is an argument of its own, `Program.frozen`.
    """

    params: Params
    optimizer: optax.OptState


StepFunction = Callable[..., tuple[State, dict[str, jax.Array]]]


class Program(NamedTuple):
    """A training step and the shapes it is compiled for.

    Attributes:
      step: jitted (state, batch, step number from 0, frozen) -> (state, metrics); the state is donated.
      optimizer: the transformation whose state is in `state`.
      state, batch: shapes, dtypes and placement.
      frozen: likewise, of the parameters beside which adapters are trained; {} without adapters.
      row_groups: groups of devices that each work on rows of their own.
    """

    step: Any
    optimizer: optax.GradientTransformation
    state: State
    batch: dict[str, jax.ShapeDtypeStruct]
    frozen: Params
    row_groups: int


def program(recipe: Recipe, mesh: Mesh, extra_keys: tuple[str, ...] = ()) -> Program:
    """The step of a stage on a mesh, not yet compiled: lower it under `jax.set_mesh(mesh)`.

    Args:
      extra_keys: keys of batches beside those that the objective needs, such as "segment" and "target".

    Raises:
      UserError: the mesh divides neither the model nor the rows.
    """
    placement.check_model(recipe.model, mesh)
    split, row_groups = split_rows(recipe, mesh)
    stage = recipe.stage
    transform = optimizer_lib.make(recipe.optimizer, stage.learning_rate, stage.steps)
    step = make_step(
        objective.loss_function(recipe, split_rationales=split),
        transform,
        stage_key(recipe),
        recipe.microbatches,
        recipe.talk_steps,
        recipe.lora.scale if recipe.lora else 1.0,
    )
    params = objective.abstract_params(recipe.model, recipe.thought, recipe.lora)
    params, frozen = lora.split(params)
    state = State(params, jax.eval_shape(transform.init, params))
    state = State(*(placement.placed(tree, mesh) for tree in state))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    batch = abstract_batch(recipe, mesh, extra_keys)
    return Program(jitted, transform, state, batch, placement.placed(frozen, mesh), row_groups)


def stage_key(recipe: Recipe) -> jax.Array:
    """The key that all randomness of a stage is folded from."""
    return jax.random.fold_in(seeds.key(recipe.seed), recipe.stage.number)


def abstract_batch(
    recipe: Recipe, mesh: Mesh, extra_keys: tuple[str, ...] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and placement of a stage's batches."""
    B, T = recipe.batch_size, recipe.seq_len
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "tokens": ((B, T), np.int32),
        "mask": ((B, T), bool),
    }
    if "segment" in extra_keys:
        shapes["segment"] = ((B, T), np.int32)
    if "target" in extra_keys:
        shapes["target"] = ((B, T), bool)
    for name, (shape, dtype) in objective.teacher_arrays(recipe).items():
        shapes[name] = ((B, *shape), dtype)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.rows(shape, mesh))
        for name, (shape, dtype) in shapes.items()
    }


def split_rows(recipe: Recipe, mesh: Mesh) -> tuple[bool, int]:
    """The distribution of a step's rows: (rationales are rows of their own, groups of devices).

    Rationales become rows if more devices can then share the work.

    Raises:
      UserError: the mesh has several groups of devices, and the rows fill only one of them.
    """
    if recipe.batch_size % recipe.microbatches:
        raise UserError(
            f"batch_size {recipe.batch_size} is no multiple of microbatches {recipe.microbatches}"
        )
    rows = recipe.batch_size // recipe.microbatches
    whole = sharding.row_groups(rows, mesh)
    R = recipe.thought.rationales if recipe.thought else 0
    split = sharding.row_groups(rows * R, mesh) if R else 0
    groups = max(whole, split)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if groups == 1 and devices > 1:
        rationales = f" of {R} rationales" if R else ""
        most = math.gcd(rows, devices)
        way = f"--config.mesh.data={devices // most} divides them among {most}" if most > 1 else ""
        raise UserError(
            f"{recipe.stage}: {rows} row(s){rationales} a step cannot be divided among "
            f"mesh.data={mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']} devices; "
            f"{way or 'choose a batch_size that they divide'}"
        )
    return split > whole, groups


def make_step(
    loss_function: Loss,
    transform: optax.GradientTransformation,
    key: jax.Array,
    microbatches: int = 1,
    talk_steps: int = 1,
    adapter_scale: float = 1.0,
) -> StepFunction:
    """The pure training step (state, batch, step number from 0[, frozen]) -> (state, metrics).

    A step whose loss or gradient norm is NaN or infinite changes nothing but the counts of such steps.

    Args:
      microbatches: parts of the batch that go through the network one after the other; the loss, its
        gradient and the metrics are those of the whole batch.
      talk_steps: A of the objective.
      adapter_scale: factor of the adapters' products.
    """

    def train_step(
        state: State, batch: dict[str, Any], step: jax.Array, frozen: Params | None = None
    ) -> tuple[State, dict[str, jax.Array]]:
        def loss_of_trained(trained: Params, batch: dict[str, Any], key: jax.Array) -> Any:
            return loss_function(lora.joined(trained, frozen or {}, adapter_scale), batch, key)

        step_key = jax.random.fold_in(key, step)
        gradient = jax.value_and_grad(loss_of_trained, has_aux=True)
        if microbatches > 1:
            gradient = functools.partial(_in_microbatches, gradient, microbatches, talk_steps)
        (loss, sums), grads = gradient(state.params, batch, step_key)
        grads = placement.constrain_parameters(grads)
        norms = optimizer_lib.part_norms(grads)
        finite = jnp.isfinite(jnp.stack([loss.astype(jnp.float32), *norms.values()])).all()
        updates, optimizer_state = transform.update(
            grads, state.optimizer, state.params, finite=finite
        )
        params = optax.apply_updates(state.params, updates)
        metrics = metrics_lib.values(sums)
        metrics |= {"loss": loss, **norms}
        metrics |= {
            "skipped_in_a_row": optimizer_state.notfinite_count,
            "skipped_steps": optimizer_state.total_notfinite,
        }
        return State(params, optimizer_state), metrics

    return train_step


def _in_microbatches(
    gradient: Callable[..., Any],
    parts: int,
    talk_steps: int,
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> Any:
    """The loss, metrics and gradient of a batch, computed in parts and accumulated in float32.

    Microbatches hold different numbers of targets, so each divides by the counts of the whole batch.
    A row's random draws do not depend on its microbatch. Each microbatch has some of every device's
    rows, so that no row moves between devices.
    """
    rows = batch["tokens"].shape[0]
    whole = {
        "counts": batch_lib.target_counts(batch_lib.talk_targets(batch, talk_steps)) / parts,
        "weight": jnp.sum(batch_lib.position_weights(batch)) / parts,
    }

    def part_gradient(part: dict[str, jax.Array]) -> Any:
        (loss, sums), grads = gradient(params, part | whole, key)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        return (loss.astype(jnp.float32), sums), placement.constrain_parameters(grads)

    mean, total = AccumulationType.MEAN, AccumulationType.SUM
    accumulated = microbatch(
        part_gradient, argnums=0, microbatch_size=rows // parts, accumulator=((mean, total), mean)
    )
    (loss, sums), grads = accumulated(batch | {"row": jnp.arange(rows)})
    grads = placement.constrain_parameters(grads)
    return (loss, sums), jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
