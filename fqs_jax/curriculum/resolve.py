"""From a config to recipes: each stage's settings are parsed here, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from fqs_jax.curriculum import objective, settings
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.checks import check_config, check_recipe, check_row
from fqs_jax.curriculum.objective import OBJECTIVES
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.curriculum.stage import Stage, rows
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.lora import Lora
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig


def recipe(config: ml_collections.ConfigDict, stage: Stage, model: ModelConfig) -> Recipe:
    """The recipe of one stage, unchecked.

    Args:
      stage: with its number of steps worked out, where steps matter.

    Raises:
      UserError: the objective does not exist, or a setting is of another field or type.
    """
    own = objective.of(stage)
    chosen = sections(config, stage)
    if own.settings and stage.objective not in chosen:
        raise UserError(
            f"the config has no section {stage.objective!r}, the settings of {stage}; add "
            f"c.{stage.objective} to its get_config()"
        )
    return Recipe(
        stage=stage,
        model=model,
        lora=settings.lora_config(chosen),
        thought=thought(config, stage),
        objective=own.settings(config, chosen[stage.objective].to_dict()) if own.settings else None,
        data=chosen.data,
        optimizer=config.optimizer,
        batch_size=config.batch_size,
        microbatches=config.microbatches,
        eval_temperature=config.thought.eval_temperature,
        seed=config.seed,
        held_out=settings.held_out(chosen),
    )


def lora(config: ml_collections.ConfigDict, stage: Stage) -> Lora | None:
    """The adapters that a stage trains; None if it trains the whole model.

    Args:
      config: an experiment's, or that of the stage's record.
    """
    return settings.lora_config(sections(config, stage)) if "lora" in config else None


def thought(
    config: ml_collections.ConfigDict, stage: Stage, **changes: Any
) -> ThoughtConfig | None:
    """The thoughts of a stage, with changed fields; None if it does not think."""
    thinks = objective.of(stage).thinks
    return settings.thought_config(config, stage, **changes) if thinks else None


def sections(config: ml_collections.ConfigDict, stage: Stage) -> ml_collections.ConfigDict:
    """The sections of a config that a stage may override, with its overrides applied."""
    with_sections = [name for name, row in OBJECTIVES.items() if row.settings]
    return settings.sections(config, stage, ["data", "lora", "held_out", *with_sections])


def recipes(
    config: ml_collections.ConfigDict, model: ModelConfig, max_steps: int | None = None
) -> list[Recipe]:
    """The recipes of all rows in order of their number, checked, with the steps of controls worked out.

    Args:
      max_steps: limit of every stage's steps.

    Raises:
      UserError: a row is inconsistent, or a setting out of range.
    """
    check_config(config, model)
    earlier: dict[int, Recipe] = {}
    for stage in rows(config):
        check_row(stage, earlier)
        unfinished = recipe(config, stage, model)
        steps = matched_steps(unfinished, earlier)
        stage = dataclasses.replace(stage, steps=min(steps, max_steps or steps))
        finished = dataclasses.replace(unfinished, stage=stage)
        check_recipe(finished, earlier)
        earlier[stage.number] = finished
    return list(earlier.values())


def find(recipes: Sequence[Recipe], which: str) -> Recipe:
    """The recipe of the stage with a number or a name.

    Raises:
      UserError: no stage has it; the message lists the existing ones.
    """
    stages = [recipe.stage for recipe in recipes]
    return recipes[stages.index(stage_lib.find(stages, which))]


def matched_steps(control: Recipe, earlier: Mapping[int, Recipe]) -> int:
    """The steps of a row. Those of a control match the tokens or FLOPs of other stages.

    Args:
      earlier: the recipes of those stages, and of their teachers.

    Raises:
      UserError: the row matches no stage and takes less than one step.
    """
    stage = control.stage

    def teacher(number: int | None) -> ThoughtConfig | None:
        return None if number is None else earlier[number].thought

    if stage.same_steps_as:
        others = [earlier[n] for n in stage.same_steps_as]
        tokens = sum(each.stage.steps * each.batch_size * each.seq_len for each in others)
        return max(1, round(tokens / (control.batch_size * control.seq_len)))
    if stage.same_flops_as:
        budget = 0
        for other in (earlier[n] for n in stage.same_flops_as):
            per_step = objective.step_flops(other)
            per_step += objective.teacher_flops(other, teacher(other.stage.teacher))
            budget += other.stage.steps * per_step
        own = objective.step_flops(control)
        own += objective.teacher_flops(control, teacher(stage.teacher))
        return max(1, round(budget / own))
    if stage.steps < 1:
        raise UserError(f"stage_{stage.number}.steps is {stage.steps}; set at least 1")
    return stage.steps
