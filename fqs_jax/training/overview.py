"""The overview that is printed before a run starts."""

from __future__ import annotations

from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.table import Table

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.model import decoder, lora
from fqs_jax.runs import folders
from fqs_jax.runtime import screen
from fqs_jax.training import step


def print_overview(root: Path, todo: list[Recipe], recipes: list[Recipe], mesh: Mesh) -> None:
    """Print a table of the stages that a command runs.

    Args:
      todo: the stages to run. recipes: all stages of the config.
    """
    names = {recipe.stage.number: str(recipe.stage) for recipe in recipes}
    parameters = decoder.num_params(decoder.abstract_params(recipes[0].model))
    places = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    devices = f"{mesh.size} {jax.default_backend()} device{'s' * (mesh.size > 1)} ({places})"
    table = Table(title=f"{root}: {parameters:,} parameters on {devices}")
    for column in (
        "stage",
        "name",
        "objective",
        "n_ahead/talk",
        "starts from",
        "steps",
        "text tokens",
        "FLOPs",
        "trained",
        "rows over",
        "done",
    ):
        table.add_column(column)
    for recipe in todo:
        stage, thought = recipe.stage, recipe.thought
        _, groups = step.split_rows(recipe, mesh)
        everything = objective.abstract_params(recipe.model, thought, recipe.lora)
        trained = decoder.num_params(lora.split(everything)[0])
        done = folders.latest_step(folders.checkpoint_folder(root, stage.number)) or 0
        start = "initial model" if stage.start is None else names[stage.start]
        teacher = "" if stage.teacher is None else f", taught by {names[stage.teacher]}"
        table.add_row(
            str(stage.number),
            stage.name,
            stage.objective,
            f"{thought.n_ahead}/{thought.n_ahead_talk}" if thought else "-",
            start + teacher,
            f"{stage.steps:,}",
            f"{stage.steps * recipe.batch_size * recipe.seq_len:,}",
            f"{stage.steps * objective.step_flops(recipe):.2e}",
            f"{trained:,}",
            f"{groups} x {mesh.size // groups}",
            f"{done:,}",
        )
    screen.show(table, 160)
