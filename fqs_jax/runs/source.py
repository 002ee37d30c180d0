"""The initial model of a run: its folder W/source, its parameters, and the marks of its thoughts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from fqs_jax import huggingface
from fqs_jax.curriculum import numbers
from fqs_jax.data import corpus
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.huggingface import model_card
from fqs_jax.model import decoder, placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runs import older_records, record
from fqs_jax.runs.folders import (
    existing_stages,
    local_source,
    source_folder,
    stage_folder,
    stage_numbers,
)
from fqs_jax.runtime import (
    agreement,
    files,
    inputs,
    local_copies,
    locks,
    own_files,
    paths,
    seeds,
    sharding,
    shared_folder,
)
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.notes import note
from fqs_jax.thinking import parameters

_LONGEST_IMPORT = 3600.0  # seconds to wait for another run that makes W/source


def prepare(
    root: Path, config: ml_collections.ConfigDict, everyone: bool = False
) -> tuple[ModelConfig, Tokenizer]:
    """Fill W/source the first time, and check that it fits the config every time.

    With several processes, process 0 writes and the others wait for it.

    Args:
      everyone: each process has a working directory of its own and writes there.

    Raises:
      UserError: the working directory was begun with another initial model, or is not the same folder
        on all hosts.
    """
    numbers.check_complete(config)  # before anything is made of them
    _check_workdir(root)
    if config.init_from and source_folder(paths.expand(config.init_from)).is_dir():
        raise UserError(
            f"{config.init_from} is a working directory; export a stage of it with "
            "python -m fqs_jax.convert and give that folder to --init_from"
        )
    if everyone:
        _fill(root, config)
    else:
        shared_folder.check(root)
        agreement.on_main(lambda: _fill(root, config))
    source = local_source(root)
    model = read_model(source, config)
    return model, tokenizer_lib.load(source).for_table(model.vocab_size, source)


def check(root: Path, config: ml_collections.ConfigDict) -> None:
    """Check that a working directory fits the config, as `prepare` does; nothing is written.

    Raises:
      UserError: it was begun with another initial model, or is a Hugging Face folder.
    """
    numbers.check_complete(config)
    _check_workdir(root)
    if _exists(source_folder(root)):
        _changed(root, config)


def check_unchanged(root: Path, config: ml_collections.ConfigDict) -> None:
    """Check that W/source is still of this config: another run may replace it before a stage begins.

    All processes must call this; process 0 reads.

    Raises:
      UserError: it is of another initial model.
    """

    def look() -> None:
        if changed := record.change(_origin(config), _read_origin(root)):
            raise UserError(
                f"another run has replaced {source_folder(root)} since this one began ({changed}); use "
                "another --workdir"
            )

    agreement.on_main(look)


def _check_workdir(root: Path) -> None:
    """Refuse a Hugging Face folder as a working directory."""
    if (root / "config.json").exists():
        raise UserError(f"{root} is a Hugging Face folder; give --workdir a folder of its own")


def _changed(root: Path, config: ml_collections.ConfigDict) -> bool:
    """True if W/source is of another initial model, and no stage was trained from it.

    Raises:
      UserError: one was.
    """
    changed = record.change(_read_origin(root), _origin(config))
    if changed and existing_stages(root):
        raise UserError(f"{root} was begun with {changed}; use another --workdir")
    return bool(changed)


def read_model(source: Path, config: ml_collections.ConfigDict) -> ModelConfig:
    """The architecture in a source folder, with the config's settings for how to compute it."""
    return dataclasses.replace(huggingface.read_config(source), **config.compute.to_dict())


def initial_params(
    root: Path, config: ml_collections.ConfigDict, model: ModelConfig, mesh: Mesh | None = None
) -> Params:
    """{"lm": ...}: imported from the place in W/source/origin.json, or random from the seed.

    Either way each device makes its own part of the parameters.

    Args:
      mesh: the devices for the parameters; None = one device.
    """
    mesh = mesh or sharding.single_device()
    if init_from := _read_origin(root)["init_from"]:
        folder = local_copies.of(paths.expand(init_from))
        return {"lm": huggingface.load_params(folder, model, model.param_dtype, mesh)}

    def init(key: jax.Array) -> Params:
        return {"lm": decoder.init(model, key)}

    key = seeds.key(config.seed)
    shardings = placement.of_parameters(jax.eval_shape(init, key), mesh)
    return jax.jit(init, out_shardings=shardings)(key)


def origin_name(root: Path) -> str:
    """The initial model's name as Markdown, without its path, which is private."""
    init_from = _read_origin(root)["init_from"]
    return model_card.code(Path(init_from).name) if init_from else "none, trained from scratch"


def mark_ids(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> tuple[int, int]:
    """The vocabulary ids that the start and end marks begin as: the first tokens of their texts.

    Raises:
      UserError: one of the texts has no token.
    """
    ids = []
    for field in ("start_text", "end_text"):
        tokens = tokenizer.encode(config.thought[field])
        if not tokens:
            raise UserError(
                f"thought.{field} {config.thought[field]!r} has no token; give another text"
            )
        if len(tokens) > 1:
            note(
                f"thought.{field} {config.thought[field]!r} is {len(tokens)} tokens in this "
                f"tokenizer; the mark begins as the first one, {tokenizer.decode(tokens[:1])!r}"
            )
        ids.append(tokens[0])
    return ids[0], ids[1]


def fresh_marks(
    config: ml_collections.ConfigDict,
    model: ModelConfig,
    lm: Params,
    tokenizer: Tokenizer,
    scale: float | None = None,
) -> Params:
    """The start and end marks [D] before any training, in the type of the embedding table.

    Args:
      scale: `ThoughtConfig.embedding_scale` of the thoughts that they are for; None = the config's.

    Raises:
      UserError: the text of a mark has no token, or one beyond the embedding table.
    """
    table = lm["embed"]["embedding"]
    ids = mark_ids(config, tokenizer)
    if max(ids) >= table.shape[0]:
        raise UserError(
            f"a mark has token {max(ids)}, and the model has {table.shape[0]} embeddings; give "
            "thought.start_text and thought.end_text other texts, or the model its own tokenizer"
        )
    return parameters.marks(lm, model, *ids, scale or config.thought.embedding_scale)


def _fill(root: Path, config: ml_collections.ConfigDict) -> None:
    """Make W/source if it does not exist, or if nothing was trained from another one.

    Raises:
      UserError: stages were trained from another initial model.
    """
    source = source_folder(root)
    if not _exists(source):
        _check_given(config)
    if (source / "origin.json").exists() and not record.change(_read_origin(root), _origin(config)):
        return  # without a lock, which needs a disk that can be written
    with locks.held(root, _LONGEST_IMPORT):  # of several runs that start together, the first one
        _make_source(root, config)


def _make_source(root: Path, config: ml_collections.ConfigDict) -> None:
    """Make W/source; see `_fill`."""
    source = source_folder(root)
    if _exists(source) and _changed(root, config):
        _check_given(config)
        with contextlib.ExitStack() as idle:
            if not paths.is_bucket(root):  # which one run holds as a whole
                # A run that trains from W/source may not have saved anything yet.
                for number in stage_numbers(root):
                    idle.enter_context(locks.held(stage_folder(root, number)))
            files.remove_tree(source)
    if _exists(source):
        return
    if paths.is_bucket(source):
        files.remove_tree(source)  # what a run has left that was killed while it wrote
    with files.new_folder(source) as folder:
        if config.init_from:
            begin = local_copies.of(paths.expand(config.init_from))
            huggingface.carry(begin, folder)
            config_json = own_files.read(begin / "config.json", begin)
            (folder / "config.json").write_bytes(config_json)
        else:
            _make(folder, config)
        files.write_json(folder / "origin.json", _origin(config))


def _exists(source: Path) -> bool:
    """True if W/source exists as a whole; in a bucket, origin.json is its last object."""
    return (source / "origin.json" if paths.is_bucket(source) else source).exists()


def _check_given(config: ml_collections.ConfigDict) -> None:
    """Refuse an initial model that cannot be used, before anything is made of it.

    Raises:
      UserError: its config.json, tokenizer or tensors are unusable, or it links to files outside of it; or
        config.model lacks a field or has an unknown one.
    """
    if not config.init_from:
        described_model(config, vocab_size=1)
        return
    folder = local_copies.of(paths.expand(config.init_from))
    model = huggingface.read_config(folder)
    huggingface.check_weights(folder, model)
    huggingface.check_carried(folder)
    own_files.read(folder / "config.json", folder)
    tokenizer_lib.load(folder).for_table(model.vocab_size, folder)


def described_model(config: ml_collections.ConfigDict, **fields: Any) -> ModelConfig:
    """The architecture in config.model, with further fields, such as a vocab_size.

    Raises:
      UserError: config.model lacks a field, or has an unknown one.
    """
    try:
        return ModelConfig(**fields, **config.model.to_dict())
    except TypeError as error:
        raise UserError(
            f"config.model describes no model ({error}); fill it in, or give --init_from=HF_DIR"
        ) from error


def _make(folder: Path, config: ml_collections.ConfigDict) -> None:
    """Write the tokenizer and config.json of a model that is trained from scratch."""
    tokenizer = corpus.train_tokenizer(config.data, config.seed, folder)
    model = described_model(config, vocab_size=tokenizer.vocab_size)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    known = {key: value for key, value in ids.items() if value is not None}
    raw = huggingface.write_config(model, model.param_dtype, known)
    files.write_text(folder / "config.json", json.dumps(raw, indent=2))


def _origin(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The part of a config that determines the initial model and the tokenizer, as in origin.json."""
    if config.init_from:
        return {"init_from": str(paths.full(paths.expand(config.init_from)))}
    # The section of a built-in task has the name of its source.
    fields = ("source", "text", "text_key", "tokenizer_pieces", "num_documents", config.data.source)
    data = {name: value for name, value in config.data.to_dict().items() if name in fields}
    origin = {"init_from": "", "seed": config.seed, "model": config.model.to_dict(), "data": data}
    return json.loads(json.dumps(origin))


def _read_origin(root: Path) -> dict[str, Any]:
    """The content of origin.json, with the fields that an earlier version left out.

    Raises:
      UserError: it cannot be read, or does not name the initial model.
    """
    path = source_folder(root) / "origin.json"
    try:
        origin = inputs.read_json(path)
        if not isinstance(origin.get("init_from"), str):
            raise UserError("it has no text 'init_from'")
    except UserError as error:
        raise UserError(
            f"{path} does not name the initial model: {error}; remove {path.parent}, and "
            "the next launch makes it again"
        ) from error
    return older_records.completed_origin(origin)
