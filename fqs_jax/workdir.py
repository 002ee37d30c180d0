"""The working directory of a run, and what can be loaded from it.

W/source/            config.json and tokenizer of the initial model, as a Hugging Face folder
                     without weights; origin.json says where the weights are
W/commands.txt       the commands that trained its stages, in order
W/evaluation.json    the last comparison of all stages; W/report.html shows it
W/stage_N/run.json   the stage row and the config it was started with
W/stage_N/checkpoints/STEP/
W/stage_N/metrics.jsonl
W/stage_N/teacher/   what the teacher says of its rows, for an NTP or distillation stage
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from fqs_jax import checkpoints, huggingface, lineage
from fqs_jax.curriculum import objective, settings
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import decoder, placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import agreement, files, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import config as config_lib


def source_folder(root: Path) -> Path:
    return root / "source"


def stage_folder(root: Path, number: int) -> Path:
    return root / f"stage_{number}"


def saved_step(root: Path, number: int) -> int | None:
    """The newest step saved of a stage, None if there is none; of several processes, as the first sees it."""
    step = checkpoints.latest_step(stage_folder(root, number) / "checkpoints")
    return next(iter(agreement.agreed([] if step is None else [step])), None)


def prepare(
    root: Path, config: ml_collections.ConfigDict, everyone: bool = False
) -> tuple[ModelConfig, Tokenizer]:
    """Fill W/source the first time, check that it fits the config every time.

    Of several processes the first one writes, and the others wait for it.

    Args:
      everyone: each process has a working directory of its own and writes there.

    Raises:
      UserError: the working directory was begun with another initial model.
    """
    if (root / "config.json").exists():
        raise UserError(f"{root} is a Hugging Face folder; give --workdir a folder of its own")
    if config.init_from and source_folder(Path(config.init_from)).is_dir():
        raise UserError(
            f"{config.init_from} is a working directory; export a stage of it with "
            "python -m fqs_jax.convert and give that folder to --init_from"
        )
    source = source_folder(root)
    if everyone:
        _fill_source(root, config)
    else:
        agreement.on_main(lambda: _fill_source(root, config))
    return read_model(source, config), tokenizer_lib.load(source)


def _fill_source(root: Path, config: ml_collections.ConfigDict) -> None:
    source, origin = source_folder(root), _origin(config)
    if source.exists() and (
        changed := lineage.change(files.read_json(source / "origin.json"), origin)
    ):
        if existing_stages(root):
            raise UserError(f"{root} was begun with {changed}; use another --workdir")
        shutil.rmtree(source)  # nothing was made from it yet
    if not source.exists():
        if config.init_from:
            huggingface.read_config(config.init_from)  # a readable error before anything is made
            tokenizer_lib.load(config.init_from)
        with files.new_folder(source) as folder:
            if config.init_from:
                huggingface.carry(Path(config.init_from), folder)
                shutil.copyfile(Path(config.init_from) / "config.json", folder / "config.json")
            else:
                _make_source(folder, config)
            (folder / "origin.json").write_text(json.dumps(origin))


def read_model(source: Path, config: ml_collections.ConfigDict) -> ModelConfig:
    """The architecture in a source folder, computed as the config says."""
    return dataclasses.replace(huggingface.read_config(source), **config.compute.to_dict())


def initial_params(
    root: Path, config: ml_collections.ConfigDict, model: ModelConfig, mesh: Mesh | None = None
) -> Params:
    """{"lm": ...}: imported from where W/source/origin.json says, or random from the seed.

    Either way parameters come into being where they lie on the mesh (None = one device).
    """
    mesh = mesh or sharding.single_device()
    init_from = files.read_json(source_folder(root) / "origin.json")["init_from"]
    if init_from:
        return {"lm": huggingface.load_params(init_from, model, model.param_dtype, mesh)}

    def init(key: jax.Array) -> Params:
        return {"lm": decoder.init(model, key)}

    key = jax.random.key(config.seed)
    return jax.jit(init, out_shardings=placement.of_parameters(jax.eval_shape(init, key), mesh))(
        key
    )


def origin_name(root: Path) -> str:
    """What the initial model was, for people; not its path, which is private."""
    init_from = files.read_json(source_folder(root) / "origin.json")["init_from"]
    return f"`{Path(init_from).name}`" if init_from else "none, trained from scratch"


def read_run(root: Path, number: int) -> tuple[Stage, ml_collections.ConfigDict]:
    """The stage row and config that a stage of the working directory was started with."""
    run = files.read_json(stage_folder(root, number) / "run.json")
    fields: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in run["stage"].items()
    }
    return Stage(**fields), ml_collections.ConfigDict(run["config"])


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
        params = objective.abstract_params(config, stage, model)
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
    thought = None
    if row.thinks:
        temperature = config.thought.eval_temperature
        thought = settings.thought_config(
            config, row, rationales=1, n_ahead_talk=1, temperature=temperature
        )
    tokenizer = tokenizer_lib.load(source)
    if thought is not None and config.thought.reset_marks_at_eval and not as_trained:
        params["thought"].update(fresh_marks(config, params["lm"], tokenizer))
    model = dataclasses.replace(read_model(source, config), **changes)
    return Loaded(params, model, tokenizer, thought, source, str(row), mesh)


def existing_stages(root: Path) -> list[Stage]:
    """Stages of a working directory that have a checkpoint, in order."""
    numbers = sorted(
        int(p.name.split("_")[1]) for p in root.glob("stage_*") if (p / "run.json").exists()
    )
    saved = [
        n
        for n in numbers
        if checkpoints.latest_step(stage_folder(root, n) / "checkpoints") is not None
    ]
    return [read_run(root, n)[0] for n in saved]


def fresh_marks(config: ml_collections.ConfigDict, lm: Params, tokenizer: Tokenizer) -> Params:
    """Start and end marks as they are before any training."""
    start, end = mark_ids(config, tokenizer)
    table = lm["embed"]["embedding"]
    scale = config.thought.embedding_scale
    return {"start": table[start] / scale, "end": table[end] / scale}


def mark_ids(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> tuple[int, int]:
    """Vocabulary ids whose embeddings the marks begin as: the first token of the configured texts."""
    ids = []
    for field in ("start_text", "end_text"):
        tokens = tokenizer.encode(config.thought[field])
        if not tokens:
            raise UserError(
                f"thought.{field} {config.thought[field]!r} has no token; give another text"
            )
        ids.append(tokens[0])
    return ids[0], ids[1]


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
        thought = config_lib.ThoughtConfig(**fields)
    return Loaded(params, model, tokenizer_lib.load(folder), thought, folder, folder.name, mesh)


def _origin(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All that the initial model and the tokenizer depend on."""
    if config.init_from:
        return {"init_from": str(Path(config.init_from).resolve())}
    # The section of a built-in task is named as its source is.
    fields = ("source", "text", "text_key", "tokenizer_pieces", "num_documents", config.data.source)
    data = {name: value for name, value in config.data.to_dict().items() if name in fields}
    origin = {"init_from": "", "seed": config.seed, "model": config.model.to_dict(), "data": data}
    return json.loads(json.dumps(origin))


def _make_source(folder: Path, config: ml_collections.ConfigDict) -> None:
    """Tokenizer and config.json of a model that is trained from scratch."""
    tokenizer = corpus.train_tokenizer(config.data, config.seed, folder)
    try:
        model = ModelConfig(vocab_size=tokenizer.vocab_size, **config.model.to_dict())
    except TypeError as error:  # a field missing or unknown
        raise UserError(
            f"config.model describes no model ({error}); fill it in, or give --init_from=HF_DIR"
        ) from error
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    known = {key: value for key, value in ids.items() if value is not None}
    raw = huggingface.write_config(model, model.param_dtype, known)
    (folder / "config.json").write_text(json.dumps(raw, indent=2))


def _names(stages: list[Stage]) -> str:
    return ", ".join(f"{stage.number} ({stage.name})" for stage in stages) or "none yet"
