"""Loading a model from a working directory or a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from fqs_jax import huggingface
from fqs_jax.curriculum import objective, settings
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import placement
from fqs_jax.model.decoder import Params
from fqs_jax.runs import checkpoints, folders
from fqs_jax.runs.folders import existing_stages, read_run, saved_step, source_folder, stage_folder
from fqs_jax.runs.source import fresh_marks, initial_params, read_model
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig


def models(
    root: Path, note: Callable[[str], None] = lambda _: None, mesh: Mesh | None = None
) -> Iterator[tuple[str, str, int, Loaded]]:
    """Every model of a working directory, loaded one after the other: stage, name, steps, model.

    First the initial model if that was imported, then all stages that have a checkpoint.

    Raises:
      UserError: there is none.
    """
    stages = trained_stages(root)
    _, config = folders.read_run(root, stages[0].number)
    if config.init_from:
        note("initial model")
        yield "init", "base", 0, load(str(root), "init", mesh=mesh)
    for stage in stages:
        note(stage.name)
        loaded = load(str(root), str(stage.number), mesh=mesh)
        folder = folders.stage_folder(root, stage.number) / "checkpoints"
        step = folders.latest_step(folder) or 0
        name = stage.name if step >= stage.steps else f"{stage.name} (unfinished)"
        yield str(stage.number), name, step, loaded


def trained_stages(root: Path) -> list[stage_lib.Stage]:
    """The stages that have a checkpoint, of which there must be one."""
    stages = folders.existing_stages(root)
    if not stages:
        raise UserError(
            f"{root} has no trained stage; train with python -m fqs_jax.launch --workdir={root}"
        )
    return stages


def load_stage(
    root: Path,
    number: int,
    command: str = "",
    finished: bool = True,
    mesh: Mesh | None = None,
) -> tuple[Params, Stage]:
    """The newest parameters of a stage, on a mesh (None = one device).

    Args:
      command: what makes a missing stage, for the error. Given, a damaged checkpoint is moved aside,
        so that this command makes it again.
      finished: whether the stage must have taken all its steps.

    Raises:
      UserError: there is none, or it is unfinished.
    """
    step, stage, config = check_stage(root, number, command, finished)
    model = read_model(source_folder(root), config)
    with checkpoints.Checkpoints(stage_folder(root, number) / "checkpoints") as saved:
        thought = _thought(config, stage)
        params = objective.abstract_params(model, thought)
        placed = placement.placed(params, mesh or sharding.single_device())
        return saved.restore_params(step, placed, move_aside=bool(command)), stage


def check_stage(
    root: Path, number: int, command: str = "", finished: bool = True
) -> tuple[int, Stage, ml_collections.ConfigDict]:
    """The newest step of a stage, its row and its config, without reading parameters: `load_stage`."""
    make = f"; make it with: {command}" if command else ""
    folder = stage_folder(root, number)
    step = saved_step(root, number)
    if step is None or not (folder / "run.json").exists():
        raise UserError(f"{root} has no checkpoint of stage {number}{make}")
    stage, config = read_run(root, number)
    if finished and step < stage.steps:
        finish = make.replace("make", "finish", 1)
        raise UserError(f"stage {number} in {root} is at step {step} of {stage.steps}{finish}")
    return step, stage, config


def load(
    checkpoint: str,
    stage: str | None = None,
    dtype: str | None = None,
    as_trained: bool = False,
    mesh: Mesh | None = None,
) -> Loaded:
    """A model from a Hugging Face folder or, with a stage, from a working directory.

    Args:
      stage: number or name of a stage; `init` = the initial model of the working directory.
      dtype: compute type; None = as trained, float32 for folders.
      as_trained: leave the marks as they are even if the config renews them for evaluation.
      mesh: where its parameters go; None = one device.

    Raises:
      UserError: nothing is there; says what would make it.
    """
    root, mesh = Path(checkpoint), mesh or sharding.single_device()
    if not root.is_dir():
        raise UserError(
            f"there is no folder {root}; give a Hugging Face folder or a working directory"
        )
    if not (source_folder(root) / "config.json").exists():
        if stage is not None:
            raise UserError(
                f"{root} is no working directory, so it has no stage {stage}; give one, or leave "
                "--stage out"
            )
        return _load_folder(root, dtype or "float32", mesh)
    known = existing_stages(root)
    if stage is None:
        raise UserError(
            f"{root} is a working directory: say which model with --stage=N, of {_names(known)}"
        )
    changes: dict[str, Any] = {"dtype": dtype} if dtype else {}
    source = source_folder(root)
    if stage == "init":
        if not known:
            raise UserError(f"{root} has no stage yet; train one with python -m fqs_jax.launch")
        _, config = read_run(root, known[0].number)
        model = dataclasses.replace(read_model(source, config), **changes)
        params = initial_params(root, config, model, mesh)
        return Loaded(
            params, model, tokenizer_lib.load(source), None, source, "initial model", mesh
        )
    row = stage_lib.find(known, stage)
    _, config = read_run(root, row.number)
    params, _ = load_stage(root, row.number, finished=False, mesh=mesh)
    temperature = config.thought.eval_temperature
    thought = _thought(config, row, rationales=1, n_ahead_talk=1, temperature=temperature)
    tokenizer = tokenizer_lib.load(source)
    if thought is not None and config.thought.reset_marks_at_eval and not as_trained:
        params["thought"].update(fresh_marks(config, params["lm"], tokenizer))
    model = dataclasses.replace(read_model(source, config), **changes)
    return Loaded(params, model, tokenizer, thought, source, str(row), mesh)


def _thought(
    config: ml_collections.ConfigDict, stage: Stage, **changes: Any
) -> ThoughtConfig | None:
    """The thoughts of a stage; None if it does not think."""
    thinks = objective.of(stage).thinks
    return settings.thought_config(config, stage, **changes) if thinks else None


def _load_folder(folder: Path, dtype: str, mesh: Mesh) -> Loaded:
    model = dataclasses.replace(huggingface.read_config(folder), dtype=dtype, param_dtype=dtype)
    params: Params = {"lm": huggingface.load_params(folder, model, dtype, mesh)}
    thought = None
    saved = huggingface.load_thought(folder)
    if saved is not None:
        fields = huggingface.load_thought_settings(folder)
        fields["masked_ids"] = tuple(fields["masked_ids"])
        where = placement.of_parameters({"thought": saved}, mesh)["thought"]
        params["thought"] = jax.device_put(saved, where)
        thought = ThoughtConfig(**fields)
    return Loaded(params, model, tokenizer_lib.load(folder), thought, folder, folder.name, mesh)


def _names(stages: list[Stage]) -> str:
    return ", ".join(f"{stage.number} ({stage.name})" for stage in stages) or "none yet"
