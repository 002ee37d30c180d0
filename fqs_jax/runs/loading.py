"""Loading models from working directories and Hugging Face folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from flax import traverse_util
from jax.sharding import Mesh

from fqs_jax import huggingface
from fqs_jax.curriculum import objective, resolve
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.huggingface import contents
from fqs_jax.huggingface.tensors import THOUGHT
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runs import best, folders, source, stages
from fqs_jax.runtime import inputs, local_copies, paths, sharding
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.thinking.config import ThoughtConfig


def load(
    checkpoint: str,
    stage: str | None = None,
    dtype: str | None = None,
    as_trained: bool = False,
    mesh: Mesh | None = None,
) -> Loaded:
    """A model from a Hugging Face folder or, with a stage, from a working directory.

    Args:
      checkpoint: path of the folder.
      stage: number or name of a stage, with @best for its best step on held-out text; `init` = the
        initial model of the working directory.
      dtype: compute type; None = as trained, float32 for folders.
      as_trained: leave the marks as they are even if the config renews them for evaluation.
      mesh: the devices for its parameters; None = one device.

    Raises:
      UserError: there is no such model; the message names what would make it.
    """
    root, mesh = paths.expand(checkpoint), mesh or sharding.single_device()
    if folders.is_workdir(root):
        return _load_from_run(root, stage, dtype, as_trained, mesh)
    check_folder(root)
    if folders.stage_numbers(root):
        raise UserError(
            f"{folders.source_folder(root)} is missing: restore it, or start the training again with the "
            f"same command, which makes it ({root / 'commands.txt'} has those of finished runs)"
        )
    if (root / "run.json").exists():
        raise UserError(
            f"{root} is a stage's folder: give the working directory above it, and --stage with its number"
        )
    if stage is not None:
        raise UserError(
            f"{root} is no working directory, so it has no stage {stage}; give one, or leave "
            "--stage out"
        )
    return _load_folder(local_copies.of(root), dtype or "float32", mesh)


def check_folder(root: Path) -> None:
    """Raises UserError if there is no folder."""
    if not root.is_dir():
        raise UserError(
            f"there is no folder {root}; give a Hugging Face folder or a working directory"
            f"{contents.way_from(root)}"
        )


def models(
    root: Path, note: Callable[[str], None] = lambda _: None, mesh: Mesh | None = None
) -> Iterator[tuple[str, str, int, Loaded]]:
    """Every model of a working directory, loaded one after the other: stage, name, steps, model.

    First the initial model if it was imported, then all stages that have a checkpoint.

    Args:
      note: gets the name of each model before it is loaded.

    Raises:
      UserError: no stage has a checkpoint.
    """
    stages = trained_stages(root)
    _, config = folders.read_run(root, stages[0].number)
    if config.init_from:
        note("initial model")
        yield "init", "base", 0, load(str(root), "init", mesh=mesh)
    for stage in stages:
        note(stage.name)
        loaded = load(str(root), str(stage.number), mesh=mesh)
        step = folders.latest_step(folders.checkpoint_folder(root, stage.number)) or 0
        name = stage.name if step >= stage.steps else f"{stage.name} (unfinished)"
        yield str(stage.number), name, step, loaded


def trained_stages(root: Path) -> list[Stage]:
    """The stages that have a checkpoint, by number.

    Raises:
      UserError: there are none.
    """
    stages = folders.existing_stages(root)
    if not stages:
        raise UserError(
            f"{root} has no trained stage; train with python -m fqs_jax.launch --workdir={root}"
        )
    return stages


def _load_from_run(
    root: Path, stage: str | None, dtype: str | None, as_trained: bool, mesh: Mesh
) -> Loaded:
    """A model of a working directory; see `load`."""
    paths.check_workdir(root)
    known = folders.existing_stages(root)
    if stage is None:
        raise UserError(
            f"{root} is a working directory; choose a model with --stage=N, of {_names(known)}"
        )
    if stage == "init" and not known:
        raise UserError(f"{root} has no stage yet; train one with python -m fqs_jax.launch")
    row, at = (known[0], None) if stage == "init" else best.find(root, known, stage)
    folder = folders.local_source(root)
    _, config = folders.read_run(root, row.number)
    model = source.read_model(folder, config)
    tokenizer = tokenizer_lib.load(folder).for_table(model.vocab_size, folder)
    if dtype:
        model = dataclasses.replace(model, dtype=dtype)
    if stage == "init":
        params = source.initial_params(root, config, model, mesh)
        return Loaded(params, model, tokenizer, None, folder, "initial model", mesh)
    params, _ = stages.load_stage(root, row.number, finished=False, mesh=mesh, at=at)
    temperature = config.thought.eval_temperature
    thought = resolve.thought(config, row, rationales=1, n_ahead_talk=1, temperature=temperature)
    if thought is not None and config.thought.reset_marks_at_eval and not as_trained:
        params["thought"].update(source.fresh_marks(config, model, params["lm"], tokenizer))
    label = str(row) if at is None else f"{row}, best step {at}"
    return Loaded(params, model, tokenizer, thought, folder, label, mesh)


def _load_folder(folder: Path, dtype: str, mesh: Mesh) -> Loaded:
    """A model of a Hugging Face folder; it thinks if it was exported from a thinking stage."""
    model = dataclasses.replace(huggingface.read_config(folder), dtype=dtype, param_dtype=dtype)
    tokenizer = tokenizer_lib.load(folder).for_table(model.vocab_size, folder)
    thought = _exported_thought(folder, model)
    params: Params = {"lm": huggingface.load_params(folder, model, dtype, mesh)}
    if thought is not None:
        saved = huggingface.load_thought(folder, _thought_shapes(model, thought))
        shardings = placement.of_parameters({"thought": saved}, mesh)["thought"]
        params["thought"] = jax.device_put(saved, shardings)
    return Loaded(params, model, tokenizer, thought, folder, folder.name, mesh)


def _exported_thought(folder: Path, model: ModelConfig) -> ThoughtConfig | None:
    """The settings of the thoughts of an exported folder; None if it has no thoughts.

    Raises:
      UserError: they are unusable.
    """
    fields = huggingface.load_thought_settings(folder, model.vocab_size)
    if fields is None:
        return None
    try:
        return ThoughtConfig(**fields)
    except UserError as error:
        raise UserError(
            f"{inputs.name(folder / THOUGHT)}: its settings are unusable: {printable(str(error), 200)}"
        ) from error


def _thought_shapes(model: ModelConfig, thought: ThoughtConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the thought parameters' leaves, by path with dots."""
    tree = objective.abstract_params(model, thought)["thought"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep=".").items()}


def _names(stages: list[Stage]) -> str:
    return ", ".join(f"{stage.number} ({stage.name})" for stage in stages) or "none yet"
