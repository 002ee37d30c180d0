"""Controls that match other stages: in tokens or FLOPs, as these were trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import folders
from fqs_jax.runtime import agreement
from fqs_jax.runtime.errors import UserError


def check(
    root: Path,
    config: ml_collections.ConfigDict,
    recipes: Sequence[Recipe],
    chosen: Sequence[Stage],
    max_steps: int | None = None,
) -> None:
    """Refuse a control whose steps match the config, where stages were trained with other settings.

    Stages may be trained one at a time, each with its own overrides. Without these, a control would match
    steps that were never trained.

    Args:
      recipes: of all rows of the config. chosen: the stages to run.
      max_steps: limit of every stage's steps.

    Raises:
      UserError: a control would take other steps; the message has both numbers.
    """
    by_number = {recipe.stage.number: recipe for recipe in recipes}

    def compare() -> None:
        trained = by_number | _trained(root, config, by_number, chosen)
        for stage in controls:
            steps = resolve.matched_steps(by_number[stage.number], trained)
            if min(steps, max_steps or steps) != stage.steps:
                what = "tokens" if stage.same_steps_as else "FLOPs"
                others = [by_number[n].stage for n in stage.same_steps_as or stage.same_flops_as]
                raise UserError(
                    f"{stage} would take {stage.steps} steps, to match the {what} of "
                    f"{' and '.join(map(str, others))}; as trained in {root}, {steps} steps match: repeat "
                    "the overrides that they were trained with, such as --config.stage_N.steps=..."
                )

    if controls := [stage for stage in chosen if stage.same_steps_as or stage.same_flops_as]:
        agreement.on_main(compare)


def _trained(
    root: Path,
    config: ml_collections.ConfigDict,
    recipes: Mapping[int, Recipe],
    chosen: Sequence[Stage],
) -> dict[int, Recipe]:
    """The recipes of existing stages, with the settings and steps that they have or will have."""
    found = {}
    for number in {stage.number for stage in folders.existing_stages(root)} & recipes.keys():
        now = recipes[number]
        stage, before = folders.read_run(root, number)
        if now.stage in chosen:  # it is trained on to the config's steps, never back
            steps = max(
                now.stage.steps, folders.latest_step(folders.checkpoint_folder(root, number)) or 0
            )
            stage = dataclasses.replace(stage, steps=steps)
        settings = ml_collections.ConfigDict(config.to_dict() | before.to_dict())
        found[number] = resolve.recipe(settings, stage, now.model)
    return found
