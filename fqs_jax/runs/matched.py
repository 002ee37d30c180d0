"""Controls that match other stages: in tokens or FLOPs, as these were trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import folders, stages
from fqs_jax.runtime import agreement
from fqs_jax.runtime.errors import UserError


def check(
    root: Path,
    recipes: Sequence[Recipe],
    chosen: Sequence[Stage],
    max_steps: int | None = None,
) -> None:
    """Refuse a control whose steps match the config, where stages were trained with other settings.

    Stages may be trained one at a time, each with its own overrides. Without these, a control would match
    steps that were never trained. A control that is done is left as it is.

    Args:
      recipes: of all rows of the config. chosen: the stages to run.
      max_steps: limit of every stage's steps.

    Raises:
      UserError: a control would take other steps; the message has both numbers.
    """
    by_number = {recipe.stage.number: recipe for recipe in recipes}

    def compare() -> None:
        for stage in controls:
            matched = stage.same_steps_as or stage.same_flops_as
            if stages.is_finished(root, stage.number):
                continue
            trained = dict(by_number)
            for number in matched:
                _add_trained(trained, number, root, chosen)
            steps = resolve.matched_steps(by_number[stage.number], trained)
            if min(steps, max_steps or steps) != stage.steps:
                what = "tokens" if stage.same_steps_as else "FLOPs"
                others = " and ".join(str(by_number[n].stage) for n in matched)
                raise UserError(
                    f"{stage} would take {stage.steps} steps, to match the {what} of {others}; as trained in "
                    f"{root}, {steps} steps match: repeat the overrides that they were trained with, such as "
                    "--config.stage_N.steps=..."
                )

    if controls := [stage for stage in chosen if stage.same_steps_as or stage.same_flops_as]:
        agreement.on_main(compare)


def _add_trained(
    recipes: dict[int, Recipe], number: int, root: Path, chosen: Sequence[Stage]
) -> None:
    """Replace the recipe of a stage that has a checkpoint, and of its teacher, by those of their records.

    A stage that is not done, or is chosen, counts with the steps to which the config trains it.
    """
    now = recipes.get(number)
    step = folders.latest_step(folders.checkpoint_folder(root, number))
    if step is None or not (folders.stage_folder(root, number) / "run.json").exists():
        return
    stage, config = folders.read_run(root, number)
    if stage.teacher is not None:
        _add_trained(recipes, stage.teacher, root, chosen)
        teacher = recipes.get(stage.teacher)
        if teacher is None or teacher.thought is None:
            return  # it is gone, and so are the costs of its scores
    if now is not None and (now.stage in chosen or step < stage.steps):
        stage = dataclasses.replace(stage, steps=max(now.stage.steps, step))
    model = next(iter(recipes.values())).model
    recipes[number] = resolve.recipe(config, stage, model)
