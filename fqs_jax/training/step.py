"""The training step: a pure function of (state, batch, step number), compiled for a mesh.

The same program is run by training/loop.py and compiled ahead of time by plan.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.objective import Loss
from fqs_jax.curriculum.stage import Stage
from fqs_jax.model import placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.training import optimizer as optimizer_lib


class State(NamedTuple):
    """What a step reads and writes."""

    params: Params
    optimizer: optax.OptState


StepFunction = Callable[[State, dict[str, Any], Any], tuple[State, dict[str, jax.Array]]]


class Program(NamedTuple):
    """A training step and what it is compiled for.

    Attributes:
      step: jitted (state, batch, step number from 0) -> (state, metrics); the state is donated.
      state, batch: shapes, types and placement.
      row_groups: how many groups of devices each work on rows of their own.
    """

    step: Any
    state: State
    batch: dict[str, jax.ShapeDtypeStruct]
    row_groups: int


def program(
    config: ml_collections.ConfigDict,
    stage: Stage,
    model: ModelConfig,
    mesh: Mesh,
    extra_keys: tuple[str, ...] = (),
) -> Program:
    """The step of a stage on a mesh, not yet compiled: lower it under `jax.set_mesh(mesh)`.

    Args:
      extra_keys: what batches have besides what the objective needs, such as "segment".

    Raises:
      UserError: the mesh divides neither the model nor the rows.
    """
    placement.check_model(model, mesh)
    split, row_groups = split_rows(config, stage, mesh)
    transform = optimizer_lib.make(config, stage.learning_rate, stage.steps)
    step = make_step(
        objective.loss_function(config, stage, model, split_rationales=split),
        transform,
        stage_key(config, stage),
        config.microbatches,
        stage.n_ahead_talk if stage.thinks else 1,
    )
    params = objective.abstract_params(config, stage, model)
    state = State(params, jax.eval_shape(transform.init, params))
    state = State(*(placement.placed(tree, mesh) for tree in state))
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(where, sharding.replicated(mesh)))
    batch = abstract_batch(config, stage, model, mesh, extra_keys)
    return Program(jitted, state, batch, row_groups)


def stage_key(config: ml_collections.ConfigDict, stage: Stage) -> jax.Array:
    """What all randomness of a stage is folded from."""
    return jax.random.fold_in(jax.random.key(config.seed), stage.number)


def abstract_batch(
    config: ml_collections.ConfigDict,
    stage: Stage,
    model: ModelConfig,
    mesh: Mesh,
    extra_keys: tuple[str, ...] = (),
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and placement of a stage's batches."""
    B, T = config.batch_size, config.data.seq_len
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "tokens": ((B, T), np.int32),
        "mask": ((B, T), bool),
    }
    if "segment" in extra_keys:
        shapes["segment"] = ((B, T), np.int32)
    for name, (shape, dtype) in objective.teacher_arrays(config, stage, model).items():
        shapes[name] = ((B, *shape), dtype)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.rows(shape, mesh))
        for name, (shape, dtype) in shapes.items()
    }


def split_rows(config: ml_collections.ConfigDict, stage: Stage, mesh: Mesh) -> tuple[bool, int]:
    """How a stage's rows are dealt out: (are rationales rows of their own, groups of devices).

    Rationales become rows where that lets more devices share the work.

    Raises:
      UserError: the rows cannot be dealt out to more than one of several groups.
    """
    if config.batch_size % config.microbatches:
        raise UserError(
            f"batch_size {config.batch_size} is no multiple of microbatches {config.microbatches}"
        )
    rows = config.batch_size // config.microbatches
    whole = sharding.row_groups(rows, mesh)
    split = sharding.row_groups(rows * config.thought.rationales, mesh) if stage.thinks else 0
    groups = max(whole, split)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if groups == 1 and devices > 1:
        rationales = f" of {config.thought.rationales} rationales" if stage.thinks else ""
        most = math.gcd(rows, devices)
        way = f"--config.mesh.data={devices // most} deals them out to {most}" if most > 1 else ""
        raise UserError(
            f"{stage}: {rows} row(s){rationales} a step cannot be dealt out to "
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
) -> StepFunction:
    """The pure training step (state, batch, step number from 0) -> (state, metrics).

    Args:
      microbatches: parts of the batch that go through the network one after the other; the loss
        and its gradient are those of the whole.
      talk_steps: A of the objective.
    """

    def train_step(
        state: State, batch: dict[str, Any], step: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        step_key = jax.random.fold_in(key, step)
        gradient = jax.value_and_grad(loss_function, has_aux=True)
        if microbatches > 1:
            gradient = functools.partial(_accumulate, gradient, microbatches, talk_steps)
        (loss, metrics), grads = gradient(state.params, batch, step_key)
        grads = placement.constrain_parameters(grads)
        updates, optimizer_state = transform.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"loss": loss, **optimizer_lib.part_norms(grads)}
        metrics |= {
            "skipped_in_a_row": optimizer_state.notfinite_count,
            "skipped_steps": optimizer_state.total_notfinite,
        }
        return State(params, optimizer_state), metrics

    return train_step


def in_parts(batch: dict[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """The rows of a batch in parts, on a new leading axis: part i has rows i, i + parts, ...

    These are some of every device's rows, so that nothing moves between devices.
    """

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(len(x) // parts, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)


def _accumulate(
    gradient: Callable[..., Any],
    parts: int,
    talk_steps: int,
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> Any:
    """`gradient` of a batch in parts, summed in float32.

    Losses are means over targets of which parts have unequally many, so each part is told the
    whole's counts; a row draws the same whichever part it is in.
    """
    rows = batch["tokens"].shape[0]
    counts = batch_lib.target_counts(batch_lib.talk_targets(batch, talk_steps)) / parts
    weight = jnp.sum(batch_lib.position_weights(batch)) / parts
    whole = {"counts": counts, "weight": weight}
    batch = batch | {"row": jnp.arange(rows)}

    def add(total: Any, part: dict[str, jax.Array]) -> tuple[Any, None]:
        (loss, metrics), grads = gradient(params, part | whole, key)
        grads = placement.constrain_parameters(grads)
        values = jax.tree.map(lambda x: x.astype(jnp.float32) / parts, ((loss, metrics), grads))
        values, grads = jax.tree.map(jnp.add, total, values)
        return (values, placement.constrain_parameters(grads)), None

    xs = in_parts(batch, parts)
    part = jax.tree.map(lambda x: x[0], xs) | whole
    shapes = jax.eval_shape(gradient, params, part, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    (values, grads), _ = jax.lax.scan(add, zeros, xs)
    return values, jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
