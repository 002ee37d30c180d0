"""ModelConfig to a config.json that all current transformers versions, and so vLLM, read alike.

Versions before 5 know only `rope_theta`, `rope_scaling` and `torch_dtype`; version 5 itself writes only
`rope_parameters` and `dtype`. An older program that does not know a key takes its default without a word,
so both spellings are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fqs_jax.huggingface import kinds, rope
from fqs_jax.huggingface.architectures import ARCHITECTURES
from fqs_jax.huggingface.config import ACTIVATIONS, parse
from fqs_jax.huggingface.fields import Json, text
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError

# All fields that change what a checkpoint computes; max_seq_len and compute settings do not.
ARCHITECTURE_FIELDS = (
    *("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
    *("rope_theta", "rope_scaling", "norm_eps", "qkv_bias", "o_bias", "qk_norm", "norms"),
    *("activation", "query_scalar", "scaled_embeddings", "stored_norm_offset", "tied_embeddings"),
    *("sliding_window", "layer_types", "local_rope_theta"),
)


def stored_dtype(raw: Json) -> str | None:
    """The weights' type in config.json, without the prefix `torch.`; None if it is not given.

    Raises:
      UserError: it is no text.
    """
    value = text(raw, "dtype", text(raw, "torch_dtype", ""))
    return value.removeprefix("torch.") or None


def write_config(config: ModelConfig, dtype: str, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """A complete config.json for an architecture that was not read from a folder.

    The model type is the first of the table with which it reads back as this architecture.

    Args:
      dtype: the type of the weights.
      token_ids: those of bos_token_id, eos_token_id and pad_token_id that exist.

    Raises:
      UserError: there is no such model type.
    """
    for model_type in ARCHITECTURES:
        raw = _written(config, model_type, dtype, token_ids)
        try:
            read = parse(raw)
        except UserError:
            continue
        if all(getattr(read, field) == getattr(config, field) for field in ARCHITECTURE_FIELDS):
            return raw
    raise UserError(
        "no architecture of transformers computes this model, so it has no config.json; its fields "
        f"should be those of one of {', '.join(ARCHITECTURES)}"
    )


def _written(
    config: ModelConfig, model_type: str, dtype: str, token_ids: Mapping[str, int]
) -> dict[str, Any]:
    """The config.json of a model type with the sizes of an architecture."""
    row = ARCHITECTURES[model_type]
    raw: dict[str, Any] = {
        "architectures": [row.class_name],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        row.activation_key: ACTIVATIONS[config.activation][0],
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        **rope.keys(config, row),
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
        "dtype": dtype,
        # Missing tokens are written as null: transformers would otherwise use its own defaults.
        **{key: token_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        **row.write_kinds(config),
    }
    if config.o_bias:
        raw["attention_bias"] = True
    if "query_pre_attn_scalar" in row.defaults:
        scalar = config.head_dim if config.query_scalar is None else config.query_scalar
        raw["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
    return raw


def rewritten(source: bytes, raw: Json, config: ModelConfig, dtype: str) -> bytes:
    """The source's config.json, unchanged if every version reads it right, else with both spellings.

    The old spelling alone is read by all versions, so a file that has only that one is left as it is. Of
    a larger model, which reads images or sound too, the part of its language model is written.

    Args:
      source: the file's bytes.
      raw: the object in them.
      config: the architecture that was read from it.
      dtype: the type of the weights that are written.
    """
    result = dict(kinds.text_part(raw, ARCHITECTURES))
    row = ARCHITECTURES[result["model_type"]]
    if "text_config" in raw:
        result["architectures"] = [row.class_name]
    if stored_dtype(result) is not None:
        result["torch_dtype"] = dtype
        if result.get("dtype") is not None:
            result["dtype"] = dtype
    inner = result.get("rope_scaling") or result.get("rope_parameters") or {}
    if result.get("rope_parameters") or "rope_theta" in inner:
        result = row.write_kinds(config) | result | rope.keys(config, row)
    if result == raw and is_json(source):
        return source
    return to_json(result)


def to_json(value: Any) -> bytes:
    """A JSON file's bytes. NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(files.nan_as_none(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def is_json(data: bytes) -> bool:
    """True for UTF-8 JSON without the constants NaN and Infinity, which Python alone accepts."""
    try:
        value = json.loads(data.decode())
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
