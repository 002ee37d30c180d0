"""The metadata of a GGUF file to config.json: one row of a table for each architecture.

Names of metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A key that llama.cpp does not
require has llama.cpp's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fqs_jax.gguf_files import rope
from fqs_jax.gguf_files.header import Header
from fqs_jax.huggingface.fields import integer, number, shown, text
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.notes import note

EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"


class Architecture(NamedTuple):
    """The name of a llama.cpp architecture in a Hugging Face folder.

    Attributes:
      model_type, class_name: as in config.json; Mistral, which llama.cpp calls llama, is not here.
      permuted: True if llama.cpp reorders the rows of the q and k projections.
      settings: further keys of config.json.
    """

    model_type: str
    class_name: str
    permuted: bool
    settings: Mapping[str, Any]


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", True, {"attention_bias": False}),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", False, {}),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", False, {"attention_bias": False}),
}
# Keys after the architecture's name: those that are read here, or say nothing about what is computed.
_READ = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "expert_used_count"),
}
# Keys that change what is computed, and the value with which they do not.
_REFUSED = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.sliding_window_pattern": 1,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.temperature_scale": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "final_logit_softcapping": 0.0,
    "attn_logit_softcapping": 0.0,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "nextn_predict_layers": 0,
}


def find(metadata: Mapping[str, Any]) -> Architecture:
    """The row of a file's architecture.

    Raises:
      UserError: there is none; names those that exist.
    """
    name = text(metadata, "general.architecture")
    if name not in ARCHITECTURES:
        raise UserError(
            f"general.architecture {shown(name)} is none of {', '.join(ARCHITECTURES)}, the ones that "
            "are read"
        )
    return ARCHITECTURES[name]


def make_config(model: Header, factors: Any, dtype: str, token_ids: Mapping[str, Any]) -> dict:
    """The config.json of a model.

    Args:
      factors: the values of the tensor rope_freqs.weight; None = it does not exist.
      dtype: the type of the exported weights.
      token_ids: bos_token_id and so on; None for those that do not exist.

    Raises:
      UserError: the metadata lacks a key, or a value has another type, is out of range, or is not supported.
        The message has no file.
    """
    metadata, row = model.metadata, find(model.metadata)
    name = text(metadata, "general.architecture")
    _check_keys(model, name)
    width = integer(metadata, f"{name}.embedding_length")
    heads = integer(metadata, f"{name}.attention.head_count")
    head_dim = integer(metadata, f"{name}.attention.key_length", max(1, width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := integer(metadata, f"{name}.{key}", head_dim)) != head_dim:
            raise UserError(f"{name}.{key} {other} is not the size of a head, {head_dim}")
    window = integer(metadata, f"{name}.attention.sliding_window", 0, least=0)
    layers = integer(metadata, f"{name}.block_count")
    context = integer(metadata, f"{name}.context_length")
    theta = number(metadata, f"{name}.rope.freq_base", 10000.0, least=1e-6, most=1e30)
    config = {
        "architectures": [row.class_name],
        "model_type": row.model_type,
        "vocab_size": _vocab_size(model, name),
        "hidden_size": width,
        "intermediate_size": integer(metadata, f"{name}.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": integer(metadata, f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": number(
            metadata, f"{name}.attention.layer_norm_rms_epsilon", least=0, most=1
        ),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(metadata, name, factors, theta, head_dim),
        "tie_word_embeddings": HEAD not in model.tensors,
        "torch_dtype": dtype,
        "dtype": dtype,
        **row.settings,
        **token_ids,
    }
    if name == "llama":
        # llama.cpp has no architecture of its own for Mistral, which is a Llama with a window.
        mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
        return config | mistral | {"sliding_window": window} if window else config
    # Layers from max_window_layers on have the window.
    return config | {
        "sliding_window": window or None,
        "use_sliding_window": window > 0,
        "max_window_layers": 0 if window else layers,
    }


def _check_keys(model: Header, name: str) -> None:
    """Refuse keys that would change what is computed, and note those that nothing here knows."""
    unknown = []
    for key, value in model.metadata.items():
        suffix = key.removeprefix(f"{name}.")
        if suffix == key or suffix in _READ:
            continue
        if suffix not in _REFUSED:
            unknown.append(key)
        elif not isinstance(value, int | float) or value != _REFUSED[suffix]:
            raise UserError(f"{printable(key, 120)} {shown(value)} is not supported")
    if unknown:
        listed = printable(", ".join(unknown[:5]), 300) + (", ..." if len(unknown) > 5 else "")
        note(f"{inputs.name(model.path)}: not used: {listed}")


def _vocab_size(model: Header, name: str) -> int:
    """The rows of the embedding table, which the metadata may repeat."""
    if EMBEDDING not in model.tensors:
        raise UserError(f"tensor {EMBEDDING} is missing")
    rows = model.tensors[EMBEDDING].shape[0]
    if (stated := integer(model.metadata, f"{name}.vocab_size", rows)) != rows:
        raise UserError(f"{name}.vocab_size is {stated}, but {EMBEDDING} has {rows} rows")
    return rows


def _rope_scaling(
    metadata: Mapping[str, Any], name: str, factors: Any, theta: float, head_dim: int
) -> dict[str, Any] | None:
    kind = text(metadata, f"{name}.rope.scaling.type", "none")
    if factors is not None:
        if kind not in ("none", "llama3"):
            raise UserError(f"{name}.rope.scaling.type {shown(kind)} contradicts {ROPE_FACTORS}")
        if factors.shape != (head_dim // 2,):
            raise UserError(f"tensor {ROPE_FACTORS} has shape {factors.shape}, not {head_dim // 2}")
        return rope.scaling(factors, theta)
    factor = number(metadata, f"{name}.rope.scaling.factor", 1.0, least=0, most=1e30)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    scaling = {"rope_type": kind, "factor": factor}
    original = f"{name}.rope.scaling.original_context_length"
    if original in metadata:
        scaling["original_max_position_embeddings"] = integer(metadata, original)
    return scaling
