"""config.json to ModelConfig, and back: one row of a table for each supported architecture.

The layouts of old and new transformers versions are read (`rope_theta` at the top level or inside
`rope_parameters`, `torch_dtype` or `dtype`). A missing key has the default of transformers. The old
layout is written, because every version reads it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fqs_jax.model.config import ModelConfig, RopeScaling
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The properties of a `model_type`.

    Attributes:
      class_name: the transformers class named in config.json.
      window: a function from config.json to the sliding window (None = full attention).
      qkv_bias: True if the q, k and v projections have biases.
      refused: switches of config.json that must be off, because they add unsupported tensors.
    """

    class_name: str
    window: Callable[[Json], int | None]
    qkv_bias: bool = False
    refused: tuple[str, ...] = ("attention_bias", "mlp_bias")


def _no_window(raw: Json) -> None:
    return None


def _plain_window(raw: Json) -> int | None:
    return raw.get("sliding_window", 4096)


def _switched_window(raw: Json) -> int | None:
    """Qwen2's window: layers from `max_window_layers` on have it, if `use_sliding_window` is true."""
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    layers = _integer(raw, "num_hidden_layers")
    first = _integer(raw, "max_window_layers", 28, least=0)
    windowed = [window is not None and i >= first for i in range(layers)]
    if (layer_types := raw.get("layer_types")) is not None:
        windowed = [window is not None and kind == "sliding_attention" for kind in layer_types]
    if any(windowed) and not all(windowed):
        raise UserError(
            f"sliding_window {window} holds for {sum(windowed)} of {layers} layers; only the same "
            "window in all layers (or none) is supported"
        )
    return window if any(windowed) else None


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", _no_window),
    "mistral": Architecture("MistralForCausalLM", _plain_window),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", _switched_window, qkv_bias=True, refused=("mlp_bias",)
    ),
}


def read_config(folder: str | Path) -> ModelConfig:
    """The architecture that a Hugging Face folder's config.json describes.

    Compute settings (dtype, remat, ...) have ModelConfig's defaults; the type of the weights is
    ignored.

    Raises:
      UserError: no folder, a missing or malformed config.json, or an unsupported architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected one with config.json and safetensors")
    path = folder / "config.json"
    raw = inputs.read_json(path)
    try:
        return _parse(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _parse(raw: Json) -> ModelConfig:
    model_type = raw.get("model_type")
    if model_type not in ARCHITECTURES:
        raise UserError(f"model_type {model_type!r} is none of {', '.join(ARCHITECTURES)}")
    row = ARCHITECTURES[model_type]
    if (act := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UserError(f"hidden_act {act!r} is not supported, only silu")
    for key in row.refused:
        if raw.get(key):
            raise UserError(f"{key} true is not supported for {model_type}")
    if raw.get("quantization_config"):
        raise UserError("quantised weights are not supported; use the unquantised checkpoint")

    width, heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
    kv_heads = _integer(raw, "num_key_value_heads", heads)
    head_dim = _integer(raw, "head_dim", width // heads)
    if heads % kv_heads:
        raise UserError(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if head_dim % 2 or (raw.get("head_dim") is None and width % heads):
        raise UserError(f"hidden_size {width} does not split into {heads} heads of even size")
    max_seq_len = _integer(raw, "max_position_embeddings", 2048)
    rope_theta, rope_scaling = _rope(raw, max_seq_len)
    window = row.window(raw)
    if window is not None and (not isinstance(window, int) or window < 1):
        raise UserError(f"sliding_window should be a positive integer or null, found {window!r}")
    return ModelConfig(
        vocab_size=_integer(raw, "vocab_size"),
        width=width,
        num_layers=_integer(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=_integer(raw, "intermediate_size"),
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        qkv_bias=row.qkv_bias,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=window,
    )


def _rope(raw: Json, max_seq_len: int) -> tuple[float, RopeScaling | None]:
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise UserError("rotary parameters that differ by layer are not supported")
    for section in (raw, rope):
        if section.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise UserError("partial_rotary_factor other than 1 is not supported")
    theta = _number(rope, "rope_theta", _number(raw, "rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"rope type {kind!r} is not supported, only default and llama3")
    original = _integer(rope, "original_max_position_embeddings", max_seq_len)
    scaling = RopeScaling(
        factor=_number(rope, "factor"),
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
        original_max_seq_len=_integer(raw, "original_max_position_embeddings", original),
    )
    return theta, scaling


def _number(raw: Json, key: str, default: float | None = None, least: float = 0.0) -> float:
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"key {key!r} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key} should be a number, found {value!r}")
    if value < least:
        raise UserError(f"{key} should be at least {least:g}, found {value!r}")
    return float(value)


def _integer(raw: Json, key: str, default: int | None = None, least: int = 1) -> int:
    value = _number(raw, key, default, least)
    if value != int(value):
        raise UserError(f"{key} should be an integer, found {value!r}")
    return int(value)


def stored_dtype(raw: Json) -> str | None:
    """The weights' type in config.json, without the prefix `torch.`; None if it is not given."""
    value = raw.get("dtype") or raw.get("torch_dtype")
    return None if value is None else str(value).removeprefix("torch.")


def with_dtype(raw: Json, dtype: str) -> dict[str, Any]:
    """The same config.json with another weight type, under the keys that it uses already."""
    keys = [key for key in ("dtype", "torch_dtype") if key in raw] or ["torch_dtype"]
    return {**raw, **dict.fromkeys(keys, dtype)}


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
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
        # Missing tokens are written as null: transformers would otherwise use its own defaults.
        **{key: token_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    if (scaling := config.rope_scaling) is not None:
        raw["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    if model_type == "mistral":
        raw["sliding_window"] = config.sliding_window
    if model_type == "qwen2":
        raw["sliding_window"] = config.sliding_window
        raw["use_sliding_window"] = config.sliding_window is not None
        # Layers from this one on have the window.
        raw["max_window_layers"] = 0 if config.sliding_window else config.num_layers
    return raw
