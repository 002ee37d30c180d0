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

from fqs_jax import huggingface
from fqs_jax.data import corpus
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.model import decoder, placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runs import record
from fqs_jax.runs.folders import existing_stages, source_folder
from fqs_jax.runtime import agreement, files, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import parameters


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
        changed := record.change(files.read_json(source / "origin.json"), origin)
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


def fresh_marks(config: ml_collections.ConfigDict, lm: Params, tokenizer: Tokenizer) -> Params:
    """Start and end marks as they are before any training."""
    scale = config.thought.embedding_scale
    return parameters.marks(lm["embed"]["embedding"], *mark_ids(config, tokenizer), scale)


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
