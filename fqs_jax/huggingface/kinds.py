"""The kind of model that a config.json describes: a decoder of text, alone or in a larger model.

Of a model that reads images or sound besides, the language model alone is read, trained and exported, as a
stock folder of its own. Models whose layers are of another kind are refused with the reason.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from fqs_jax.huggingface.fields import Json, shown
from fqs_jax.runtime.errors import UserError

_OTHER_INPUTS = {
    "vision_config": "images",
    "audio_config": "sound",
    "speech_config": "sound",
    "image_token_id": "images",
    "image_token_index": "images",
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Of a state that is carried from token to token: state-space models, linear attention, other recurrences.
_RECURRENT = (
    *("ssm_cfg", "state_size", "mamba_d_state", "mamba_d_ssm", "ssm_state_size", "conv_L_cache"),
    *("linear_num_key_heads", "linear_num_value_heads", "lru_width", "layers_block_type"),
    *("hybrid_override_pattern", "attention_hidden_size", "linear_attn_config"),
)
_RECURRENT_LAYERS = ("linear", "mamba", "recurrent", "conv", "lru", "ssm", "rwkv", "delta")
# Prefixes of the language model's tensors in a larger model, by what they become in a folder of its own.
_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}


def text_part(raw: Json, supported: Container[str]) -> Json:
    """The config.json of the language model: the object itself, or its `text_config`.

    Keys of the larger model that belong to the language model too are added where it lacks them.

    Args:
      supported: values of `model_type` that can be read.

    Raises:
      UserError: it is an encoder-decoder, or reads images or sound and has no language model of a
        supported kind in it.
    """
    kind = f"model_type {shown(raw.get('model_type'))}"
    if raw.get("is_encoder_decoder"):
        raise UserError(f"{kind} is an encoder-decoder; only decoders of text are supported")
    inner = raw.get("text_config")
    if isinstance(inner, dict):
        check_layers(inner)
        model_type = inner.get("model_type")
        if isinstance(model_type, str) and model_type in supported:
            return _with_shared_keys(inner, raw)
        kind += f" with a language model of model_type {shown(model_type)}"
    for key, what in _OTHER_INPUTS.items():
        if raw.get(key) is not None:
            raise UserError(
                f"{kind} reads {what} ({key}); only decoders of text are supported: save its "
                "language model alone"
            )
    return raw


def _with_shared_keys(inner: dict[str, Any], outer: Json) -> dict[str, Any]:
    shared = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    both = "tie_word_embeddings"
    if None not in (inner.get(both), outer.get(both)) and inner[both] != outer[both]:
        raise UserError(f"{both} is {shown(outer[both])}, but {shown(inner[both])} in text_config")
    more = {key: outer[key] for key in (*shared, *tokens) if outer.get(key) is not None}
    return more | {key: value for key, value in inner.items() if value is not None}


def check_layers(raw: Json) -> None:
    """Refuse a config.json of layers in which a thought block cannot run.

    A block is a few more positions of ordinary attention: its slots read the text's cached keys through a
    window behind them, and go through one dense MLP.

    Raises:
      UserError: names the kind of layers, the key that tells it and the reason.
    """
    kind = f"model_type {shown(raw.get('model_type'))}"
    types = raw.get("layer_types")
    names = [name for name in types if isinstance(name, str)] if isinstance(types, list) else []
    for key in _EXPERTS:
        if isinstance(raw.get(key), int) and raw[key] > 1:
            raise UserError(
                f"{kind} is a mixture of experts ({key} {shown(raw[key])}), and layers here have one "
                "MLP that every token goes through; use a dense model"
            )
    recurrent = [key for key in _RECURRENT if raw.get(key) is not None]
    if recurrent or (recurrent := _containing(names, _RECURRENT_LAYERS)):
        raise UserError(
            f"{kind} has recurrent or linear-attention layers ({shown(recurrent[0])}), which keep a state "
            "instead of keys, and a thought block at every position reads the keys before it; use a "
            "model with attention in all layers"
        )
    if raw.get("attention_chunk_size") is not None or _containing(names, ("chunked",)):
        raise UserError(
            f"{kind} attends within chunks of the text, and a thought block behind a position would "
            "lie across their borders; use a model with full or sliding attention"
        )
    if raw.get("kv_lora_rank") is not None:
        raise UserError(
            f"{kind} has multi-head latent attention (kv_lora_rank), which keeps compressed keys; use a "
            "model with ordinary keys and values"
        )


def _containing(names: Iterable[str], parts: Iterable[str]) -> list[str]:
    return [name for name in names if any(part in name for part in parts)]


def text_name(stored_name: str) -> str:
    """The name of a tensor of the language model in a folder of its own."""
    for prefix, ours in _PREFIXES.items():
        if stored_name.startswith(prefix):
            return ours + stored_name.removeprefix(prefix)
    return stored_name


def is_text(stored_name: str) -> bool:
    """True for a tensor of the language model in a larger model."""
    return text_name(stored_name) != stored_name or stored_name.startswith("lm_head.")


def is_within(stored_names: Iterable[str]) -> bool:
    """True if the tensors are those of a larger model, with a language model in it."""
    return any(name.startswith(tuple(_PREFIXES)) for name in stored_names)
