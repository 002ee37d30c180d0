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
from fqs_jax.model.decoder import Params
from fqs_jax.runs import folders, loading, source
from fqs_jax.runtime.interrupts import Interrupts
from fqs_jax.thinking import parameters
from fqs_jax.thinking.config import Thinker
from fqs_jax.training import step as step_lib
from fqs_jax.training.step import Program, State

RESUME = "run the same command again to resume"
_INIT = 2**32 - 1  # folded in instead of a step number, for draws before the first step

Batches = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the stages of a run share.

    Attributes:
      root: the working directory, already prepared (`source.prepare`).
      command: from a stage's number to the command line that makes it.
    """

    root: Path
    config: ml_collections.ConfigDict
    tokenizer: Tokenizer
    mesh: Mesh
    interrupts: Interrupts
    command: Callable[[int], str]

    def folder(self, stage: Stage) -> Path:
        return folders.stage_folder(self.root, stage.number)


def starting_state(run: Run, recipe: Recipe, program: Program) -> State:
    """The state before a stage's first step, created in its place on the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state)
    params = starting_params(run, recipe, shardings.params)
    init = jax.jit(program.optimizer.init, out_shardings=shardings.optimizer)
    return State(params, init(params))


def starting_params(run: Run, recipe: Recipe, shardings: Params) -> Params:
    """Parameters before the stage's first step: see the order of precedence in training/loop.py.

    A thinking stage keeps the marks and the talk head of a thinking start, except what the config's
    reset switches renew (published: marks and the head's last layer at every stage).

    Args:
      shardings: placement of the parameters, `Program.state`.
    """
    config, start = run.config, recipe.stage.start
    if start is None:
        params = source.initial_params(run.root, config, recipe.model, run.mesh)
    else:
        params, _ = loading.load_stage(run.root, start, run.command(start), mesh=run.mesh)
    if recipe.thought is None:
        return {"lm": params["lm"]}
    thinker = Thinker(recipe.model, recipe.thought)
    marks = source.mark_ids(config, run.tokenizer)
    key = jax.random.fold_in(step_lib.stage_key(recipe), _INIT)

    def thought(embed: Params, old: Params | None) -> Params:
        fresh = parameters.init(thinker, {"embed": embed}, key, *marks)
        if old is None:
            return fresh
        kept: Params = {name: old.get(name, new) for name, new in fresh.items()}
        if config.thought.reset_marks_on_load:
            kept |= {name: fresh[name] for name in fresh if name != "talk_head"}
        if config.thought.reset_talk_head_on_load:
            kept["talk_head"] = {**kept["talk_head"], "out": fresh["talk_head"]["out"]}
        return kept

    make = jax.jit(thought, out_shardings=shardings["thought"])
    made = make(params["lm"]["embed"], params.get("thought"))
    return {**params, "thought": made}
