"""The state that a stage starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.model import lora as lora_lib
from fqs_jax.model.decoder import Params
from fqs_jax.runs import folders, source, stages
from fqs_jax.runs.stages import Base
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupts
from fqs_jax.thinking import parameters
from fqs_jax.thinking.config import Thinker
from fqs_jax.training import step as step_lib
from fqs_jax.training.profiling import Steps
from fqs_jax.training.step import Program, State

RESUME = "run the same command again to resume"
# Folded in instead of a step number, for draws before the first step: thoughts, adapters.
_INIT, _ADAPTERS = 2**32 - 1, 2**32 - 2

Batches = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the stages of a run share.

    Attributes:
      root: the working directory, already prepared (`source.prepare`).
      command: from a stage's number to the command line that makes it.
      also_log: where metrics go besides metrics.jsonl: names of runs/also_log.py.
      profile: the steps of each stage that are traced.
    """

    root: Path
    config: ml_collections.ConfigDict
    tokenizer: Tokenizer
    mesh: Mesh
    interrupts: Interrupts
    command: Callable[[int], str]
    also_log: tuple[str, ...] = ()
    profile: Steps | None = None

    def folder(self, stage: Stage) -> Path:
        return folders.stage_folder(self.root, stage.number)


def check_base(recipe: Recipe, config: ml_collections.ConfigDict) -> None:
    """Refuse adapters beside random parameters, which are never trained.

    Raises:
      UserError: the stage starts from random parameters.
    """
    number = recipe.stage.number
    if recipe.lora is not None and recipe.stage.start is None and not config.init_from:
        raise UserError(
            f"stage_{number} would freeze random parameters: give --init_from=HF_DIR, or train the stage in "
            f"full, with lora.rank=0 in stage_{number}.settings"
        )


def frozen_base(run: Run, recipe: Recipe) -> Base | None:
    """The base of a stage's adapters, in its place on the mesh; None for a stage without adapters."""
    if recipe.lora is None:
        return None
    return stages.load_base(run.root, run.config, recipe.stage, run.command, run.mesh)


def starting_state(run: Run, recipe: Recipe, program: Program, base: Base | None = None) -> State:
    """The state before a stage's first step, created in its place on the mesh.

    Args:
      base: see `frozen_base`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state)
    params = of_types(starting_params(run, recipe, shardings.params, base), program.state.params)
    init = jax.jit(program.optimizer.init, out_shardings=shardings.optimizer)
    return State(params, init(params))


def of_types(params: Params, wanted: Params) -> Params:
    """Parameters of the types of `wanted`: an earlier stage may have had another compute.param_dtype."""
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, wanted)


def starting_params(
    run: Run, recipe: Recipe, shardings: Params, base: Base | None = None
) -> Params:
    """Trained parameters before the stage's first step: see the order of precedence in training/loop.py.

    A thinking stage keeps the marks and the talk head of a thinking start, except what the config's
    reset switches renew (published: marks and the head's last layer at every stage). Kept marks are the
    same to the network, whatever scale either stage stores them at.

    Args:
      shardings: placement of the parameters, `Program.state`.
      base: see `frozen_base`.
    """
    config, start = run.config, recipe.stage.start
    if base is not None:
        params = _with_adapters(run, recipe, shardings, base)
    elif start is None:
        params = source.initial_params(run.root, config, recipe.model, run.mesh)
    else:
        params, _ = stages.load_stage(run.root, start, run.command(start), mesh=run.mesh)
    if recipe.thought is None:
        return {"lm": params["lm"]}
    embed = (params if base is None else base.params)["lm"]["embed"]
    thinker = Thinker(recipe.model, recipe.thought)
    rescale = 1.0
    if start is not None:
        _, before = folders.read_run(run.root, start)
        rescale = before.thought.embedding_scale / recipe.thought.embedding_scale
    marks = source.mark_ids(config, run.tokenizer)
    key = jax.random.fold_in(step_lib.stage_key(recipe), _INIT)

    def thought(embed: Params, old: Params | None) -> Params:
        fresh = parameters.init(thinker, {"embed": embed}, key, *marks)
        if old is None:
            return fresh
        own = old | {name: mark * rescale for name, mark in old.items() if name != "talk_head"}
        kept: Params = {name: own.get(name, new) for name, new in fresh.items()}
        if config.thought.reset_marks_on_load:
            kept |= {name: fresh[name] for name in fresh if name != "talk_head"}
        if config.thought.reset_talk_head_on_load:
            kept["talk_head"] = {**kept["talk_head"], "out": fresh["talk_head"]["out"]}
        return kept

    make = jax.jit(thought, out_shardings=shardings["thought"])
    made = make(embed, params.get("thought"))
    return {**params, "thought": made}


def _with_adapters(run: Run, recipe: Recipe, shardings: Params, base: Base) -> Params:
    """{lm: adapters[, thought]} that a stage starts with: those that it continues, or fresh ones."""
    start, lora = recipe.stage.start, recipe.lora
    assert lora is not None  # it has a base
    if start is not None and start != stages.base_stage(run.root, run.config, recipe.stage):
        return stages.load_trained(run.root, start, run.command(start), mesh=run.mesh).params
    key = jax.random.fold_in(step_lib.stage_key(recipe), _ADAPTERS)
    layers = jax.eval_shape(lambda: base.params["lm"]["layers"])
    make = jax.jit(lambda key: lora_lib.fresh(lora, layers, key), out_shardings=shardings["lm"])
    return {**base.params, "lm": make(key)}
