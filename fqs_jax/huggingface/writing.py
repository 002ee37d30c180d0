"""Export of a parameter tree to a stock Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.huggingface import (
    config_writing,
    fast_tokenizer,
    finite,
    model_card,
    tokenizer_config,
)
from fqs_jax.huggingface.carrying import carry, check_carried
from fqs_jax.huggingface.config import read_config
from fqs_jax.huggingface.tensors import INDEX, THOUGHT, WEIGHTS, is_by_token, leaf_shapes, slots
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import files, inputs, own_files, paths
from fqs_jax.runtime.errors import UserError

Leaves = Mapping[tuple[str, ...], Any]


def export(
    params: Params,
    config: ModelConfig,
    out: str | Path,
    source: str | Path | None = None,
    dtype: str | None = None,
    thought: Params | None = None,
    thought_settings: Mapping[str, Any] | None = None,
    max_shard_bytes: float = 5e9,
    base: str | None = None,
) -> None:
    """Write a stock Hugging Face folder; it appears complete or not at all.

    Args:
      params: an `lm` tree of numpy or jax arrays.
      out: a folder that does not exist yet or is empty.
      source: the folder that the model started from. Its config.json is used, and its tokenizer and
        generation files are copied byte for byte; a tokenizer that fqs_jax trained also gets the
        tokenizer.json that transformers needs. If it is None or has no config.json (only a
        tokenizer), a new config.json is written.
      dtype: type of the weights; None = the type in the source's config.json, else that of `params`.
      thought: a `thought` tree, written to its own file, which stock loaders ignore.
      thought_settings: settings of the thoughts, JSON values, written to that file's header.
      max_shard_bytes: weights larger than this are split over several files.
      base: the model that this one started from, for the model card; None = as named by `source`.

    Raises:
      UserError: `out` exists, `params` or `source` do not fit `config`, a value is NaN, infinite or too
        large for `dtype`, `source` links to files outside of it, or `out` cannot be written.
    """
    source = None if source is None else Path(source)
    leaves = traverse_util.flatten_dict(params)
    _check_leaves(leaves, config)
    dtype = dtype or _source_dtype(source) or str(leaves["embed", "embedding"].dtype)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"weights can be float32, bfloat16 or float16, not {dtype}; choose a dtype")
    _check_values(leaves, config, dtype)
    config_json = _config_json(config, source, dtype)
    if source is not None:
        check_carried(source)
    with files.new_folder(out) as folder:
        (folder / "config.json").write_bytes(config_json)
        _write_weights(leaves, config, folder, dtype, max_shard_bytes, indexed=thought is not None)
        if thought is not None:
            write_thought(folder, thought, thought_settings)
        if source is not None:
            carry(source, folder)
            fast_tokenizer.write_tokenizer_json(source, folder)
            tokenizer_config.use_known_names(folder)
        base = base or model_card.base_of(source)
        card = model_card.text(
            paths.full(paths.expand(out)).name, config, dtype, base, thought is not None
        )
        (folder / "README.md").write_text(card, encoding="utf-8")


def _check_leaves(leaves: Leaves, config: ModelConfig) -> None:
    expected = leaf_shapes(config)
    for path in [*expected, *leaves]:
        name = "/".join(path)
        if path not in leaves:
            raise UserError(f"the parameters lack {name} of shape {expected[path]}")
        if path not in expected:
            raise UserError(f"the parameters have {name}, which the model configuration lacks")
        if (shape := tuple(leaves[path].shape)) != expected[path]:
            raise UserError(
                f"parameter {name} has shape {shape}, the model configuration implies "
                f"{expected[path]}"
            )


def _check_values(leaves: Leaves, config: ModelConfig, dtype: str) -> None:
    """Refuse NaN, infinite values, and values that the type of the written weights cannot hold.

    Raises:
      UserError: names the stored tensor and the value.
    """
    for path, leaf in leaves.items():
        try:
            finite.check_fits(leaf, dtype, "/".join(path), is_by_token(path, config))
        except UserError:
            # The leaf is that of all layers: name the first tensor of it that is wrong.
            for name, slot in slots(config).items():
                if slot.path == path:
                    part = leaf if slot.layer is None else leaf[slot.layer]
                    finite.check_fits(part, dtype, f"tensor {name}")
            raise


def _source_dtype(source: Path | None) -> str | None:
    if source is None or not (source / "config.json").exists():
        return None
    return config_writing.stored_dtype(inputs.read_json(source / "config.json"))


def _config_json(config: ModelConfig, source: Path | None, dtype: str) -> bytes:
    """The source's config.json with the type of the weights; a new one if the source has none."""
    if source is None or not (source / "config.json").exists():
        token_ids = {} if source is None else _token_ids(source)
        return config_writing.to_json(config_writing.write_config(config, dtype, token_ids))
    path = source / "config.json"
    read = read_config(source)
    theirs, ours = dataclasses.asdict(read), dataclasses.asdict(config)
    for field in config_writing.ARCHITECTURE_FIELDS:
        if ours[field] != theirs[field]:
            raise UserError(
                f"{inputs.name(path)} implies {field} {theirs[field]}, but the model has "
                f"{ours[field]}: give the folder that this model started from"
            )
    return config_writing.rewritten(
        own_files.read(path, source), inputs.read_json(path), read, dtype
    )


def _token_ids(source: Path) -> dict[str, int]:
    tokenizer = tokenizer_lib.load(source)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return {key: value for key, value in ids.items() if value is not None}


def _write_weights(
    leaves: Leaves,
    config: ModelConfig,
    folder: Path,
    dtype: str,
    max_shard_bytes: float,
    indexed: bool,
) -> None:
    """Write one file, or shards and their index.

    Args:
      indexed: True = write an index even for one file. Without an index, vLLM loads every
        *.safetensors of a folder, and would read the thought parameters as weights.
    """
    todo = slots(config)
    itemsize = jnp.dtype(dtype).itemsize
    num_bytes = {name: math.prod(slot.shape) * itemsize for name, slot in todo.items()}
    shards = plan_shards(num_bytes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else WEIGHTS
        weight_map |= dict.fromkeys(names, file)
        tensors = {}
        for name in names:
            slot = todo[name]
            leaf = leaves[slot.path]
            ours = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
            tensors[name] = np.ascontiguousarray(slot.to_stored(ours), jnp.dtype(dtype))
        save(tensors, folder / file)
    if len(shards) > 1 or indexed:
        index = {"metadata": {"total_size": sum(num_bytes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_shards(num_bytes: Mapping[str, int], max_shard_bytes: float) -> list[list[str]]:
    """Names of tensors grouped in order, each group at most `max_shard_bytes` or a single tensor."""
    shards: list[list[str]] = []
    size = math.inf
    for name, more in num_bytes.items():
        if size + more > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    return shards


def write_thought(folder: Path, thought: Params, settings: Mapping[str, Any] | None) -> None:
    """Write a `thought` tree, with its settings in the header of the file.

    Raises:
      UserError: a value is NaN or infinite, or the file cannot be written.
    """
    leaves = traverse_util.flatten_dict(thought, sep=".")
    for name, array in leaves.items():
        finite.check_fits(array, array.dtype, f"parameter thought.{name}")
    arrays = {name: np.asarray(array) for name, array in leaves.items()}
    stated = json.dumps(dict(settings or {}), allow_nan=False)
    save(arrays, folder / THOUGHT, settings=stated)


def save(tensors: Mapping[str, np.ndarray], file: Path, **metadata: str) -> None:
    """Write a safetensors file.

    Raises:
      UserError: it cannot be written.
    """
    # safetensors writes the underlying buffer, so a transposed view would silently be stored wrong.
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        save_file(contiguous, file, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise UserError(f"cannot write {file.name} for {file.parent.parent}: {error}") from error
    # safetensors creates files that only their owner may read.
    file.chmod(file.parent.stat().st_mode & 0o666)
