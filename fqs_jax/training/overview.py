"""The output of a dry run: the stages that would run, and the memory that they need."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.data import corpus
from fqs_jax.model import decoder, lora
from fqs_jax.runs import folders
from fqs_jax.runtime import device_memory, screen
from fqs_jax.runtime.device_memory import GIB
from fqs_jax.runtime.errors import printable
from fqs_jax.runtime.progress import Progress
from fqs_jax.training import memory, shortage, step


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


def print_memory(todo: list[Recipe], mesh: Mesh) -> None:
    """Compile the steps of stages, and print what each needs of a device and what the device has.

    A start compiles the same programs, and finds them in the cache. Below the table is a line for each
    stage that does not fit, with the settings that would make it fit.

    Raises:
      UserError: the compiler of a device refuses a step because of its memory.
    """
    room = device_memory.free(mesh.local_devices[0])
    table = Table(title=f"Memory of a device, GiB; {_size(room)} free")
    for column in ("stage", "parameters", "optimizer", "gradients", "thoughts' keys and values",
                   "peak by estimate", "peak of the compiled step"):  # fmt: skip
        table.add_column(column, justify="right")
    lines = []
    with Progress("compiling", 0, len(todo)) as bar:
        for recipe in todo:
            found = memory.estimate(recipe, mesh)
            program = step.program(recipe, mesh, corpus.extra_keys(recipe.data))
            with shortage.explained(recipe, mesh), jax.set_mesh(mesh):
                compiled = program.step.lower(
                    program.state, program.batch, np.int32(0), program.frozen
                ).compile()
            used = device_memory.of_program(compiled, mesh.devices.flat[0].platform)
            needed = used.peak if used else None
            parts = found.parameters, found.optimizer, found.gradients, found.thoughts
            sizes = (*parts, found.peak, needed)
            table.add_row(str(recipe.stage.number), *map(_size, sizes))
            if room is not None and (needed or found.peak) > room:
                lines.append(shortage.sentence(recipe, mesh, room, needed or found.peak))
            bar.advance()
    screen.show(table, 160)
    for line in lines:
        print(printable(line), flush=True)


def _size(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.3g}"
