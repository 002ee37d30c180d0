"""ModelConfig to a config.json that all current transformers versions, and so vLLM, read alike.

Versions before 5 know only `rope_theta`, `rope_scaling` and `torch_dtype`; version 5 itself writes only
`rope_parameters` and `dtype`. An older program that does not know a key takes its default without a word,
so both spellings are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fqs_jax.huggingface.config import ARCHITECTURES
from fqs_jax.huggingface.fields import Json, text
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime import files


def stored_dtype(raw: Json) -> str | None:
    """The weights' type in config.json, without the prefix `torch.`; None if it is not given.

    Raises:
      UserError: it is no text.
    """
    value = text(raw, "dtype", text(raw, "torch_dtype", ""))
    return value.removeprefix("torch.") or None


def write_config(config: ModelConfig, dtype: str, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """A complete config.json for an architecture that was not read from a folder.

    The model type is qwen2 if q, k and v have biases, else mistral if it has a sliding window, else
    llama.

    Args:
      dtype: the type of the weights.
      token_ids: those of bos_token_id, eos_token_id and pad_token_id that exist.
    """
    model_type = "qwen2" if config.qkv_bias else "mistral" if config.sliding_window else "llama"
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURES[model_type].class_name],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        **_rope_keys(config),
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
        "dtype": dtype,
        # Missing tokens are written as null: transformers would otherwise use its own defaults.
        **{key: token_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    if model_type == "mistral":
        raw["sliding_window"] = config.sliding_window
    if model_type == "qwen2":
        raw["sliding_window"] = config.sliding_window
        raw["use_sliding_window"] = config.sliding_window is not None
        # Layers from this one on have the window.
        raw["max_window_layers"] = 0 if config.sliding_window else config.num_layers
    return raw


def rewritten(source: bytes, raw: Json, config: ModelConfig, dtype: str) -> bytes:
    """The source's config.json, unchanged if every version reads it right, else with both spellings.

    The old spelling alone is read by all versions, so a file that has only that one is left as it is.

    Args:
      source: the file's bytes.
      raw: the object in them.
      config: the architecture that was read from it.
      dtype: the type of the weights that are written.
    """
    result = dict(raw)
    if stored_dtype(raw) is not None:
        result["torch_dtype"] = dtype
        if raw.get("dtype") is not None:
            result["dtype"] = dtype
    inner = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if raw.get("rope_parameters") or "rope_theta" in inner:
        result |= _rope_keys(config)
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


def _rope_keys(config: ModelConfig) -> dict[str, Any]:
    """The rotary embedding in both spellings."""
    scaling: dict[str, Any] = {}
    if (llama3 := config.rope_scaling) is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": llama3.factor,
            "low_freq_factor": llama3.low_freq_factor,
            "high_freq_factor": llama3.high_freq_factor,
            "original_max_position_embeddings": llama3.original_max_seq_len,
        }
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling or None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, **scaling},
    }
