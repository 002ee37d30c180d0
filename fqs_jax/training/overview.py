"""The overview that is printed before a run starts."""

from __future__ import annotations

from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.stage import Stage
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.runs import folders
from fqs_jax.training import step


def print_overview(
    root: Path,
    config: ml_collections.ConfigDict,
    todo: list[Stage],
    stages: list[Stage],
    model: ModelConfig,
    mesh: Mesh,
) -> None:
    """What would run."""
    names = {stage.number: str(stage) for stage in stages}
    parameters = decoder.num_params(decoder.abstract_params(model))
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
        "rows over",
        "done",
    ):
        table.add_column(column)
    for stage in todo:
        per_step = config.batch_size * config.data.seq_len
        _, groups = step.split_rows(config, stage, mesh)
        done = folders.latest_step(folders.stage_folder(root, stage.number) / "checkpoints") or 0
        start = "initial model" if stage.start is None else names[stage.start]
        teacher = "" if stage.teacher is None else f", taught by {names[stage.teacher]}"
        table.add_row(
            str(stage.number),
            stage.name,
            stage.objective,
            f"{stage.n_ahead}/{stage.n_ahead_talk}" if stage.thinks else "-",
            start + teacher,
            f"{stage.steps:,}",
            f"{stage.steps * per_step:,}",
            f"{stage.steps * objective.step_flops(config, stage, model):.2e}",
            f"{groups} x {mesh.size // groups}",
            f"{done:,}",
        )
    Console(width=160).print(table)
