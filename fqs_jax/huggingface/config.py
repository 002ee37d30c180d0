"""config.json to ModelConfig: one row of a table for each supported architecture.

The layouts of old and new transformers versions are read (`rope_theta` at the top level or inside
`rope_parameters`). A missing key has the default of transformers. Every value is checked for its type and
range; that the sizes are those of the weights is checked when the weights are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fqs_jax.huggingface import contents
from fqs_jax.huggingface.fields import Json, integer, number, shown, switch, text
from fqs_jax.model.config import ModelConfig, RopeScaling
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

# The numbers of rotary embeddings lie between these: beyond them, frequencies leave float32.
_LEAST_ROPE, _MOST_ROPE = 1e-6, 1e30


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
    """Mistral's window; null is full attention, and a missing key is transformers' default."""
    if "sliding_window" in raw and raw["sliding_window"] is None:
        return None
    return integer(raw, "sliding_window", 4096)


def _switched_window(raw: Json) -> int | None:
    """Qwen2's window: layers from `max_window_layers` on have it, if `use_sliding_window` is true."""
    window = _plain_window(raw)
    layers = integer(raw, "num_hidden_layers")
    first = integer(raw, "max_window_layers", 28, least=0)
    windowed = max(0, layers - first)
    if (layer_types := raw.get("layer_types")) is not None:
        if not isinstance(layer_types, list) or len(layer_types) != layers:
            raise UserError(
                f"layer_types should be a list of {layers} names, found {shown(layer_types)}"
            )
        windowed = layer_types.count("sliding_attention")
        if windowed + layer_types.count("full_attention") < layers:
            raise UserError("layer_types has other names than full_attention, sliding_attention")
    if window is None or not windowed or not switch(raw, "use_sliding_window"):
        return None
    if windowed < layers:
        raise UserError(
            f"sliding_window {window} holds for {windowed} of {layers} layers; only the same "
            "window in all layers (or none) is supported"
        )
    return window


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
      UserError: no folder, an adapter's folder, a missing or malformed config.json, or an unsupported
        architecture.
    """
    folder = Path(folder)
    contents.check_config(folder)
    path = folder / "config.json"
    raw = inputs.read_json(path)
    try:
        return _parse(raw)
    except UserError as error:
        raise UserError(f"{inputs.name(path)}: {error}") from error


def _parse(raw: Json) -> ModelConfig:
    row = ARCHITECTURES[_model_type(raw)]
    if (act := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UserError(f"hidden_act {shown(act)} is not supported, only silu")
    for key in row.refused:
        if switch(raw, key):
            raise UserError(f"{key} true is not supported for {raw['model_type']}")
    contents.check_not_quantised(raw)

    width, heads = integer(raw, "hidden_size"), integer(raw, "num_attention_heads")
    kv_heads = integer(raw, "num_key_value_heads", heads)
    head_dim = integer(raw, "head_dim", width // heads)
    if heads % kv_heads:
        raise UserError(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if head_dim % 2 or (raw.get("head_dim") is None and width % heads):
        raise UserError(f"hidden_size {width} does not split into {heads} heads of even size")
    max_seq_len = integer(raw, "max_position_embeddings", 2048)
    rope_theta, rope_scaling = _rope(raw, max_seq_len)
    return ModelConfig(
        vocab_size=integer(raw, "vocab_size"),
        width=width,
        num_layers=integer(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=integer(raw, "intermediate_size"),
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=number(raw, "rms_norm_eps", 1e-6, least=0, most=1),
        qkv_bias=row.qkv_bias,
        tied_embeddings=switch(raw, "tie_word_embeddings"),
        sliding_window=row.window(raw),
    )


def _model_type(raw: Json) -> str:
    """The supported `model_type`; the error for another one says what kind of model it is."""
    contents.check_text_decoder(raw)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(f"model_type {shown(model_type)} is none of {', '.join(ARCHITECTURES)}")
    return model_type


def _rope(raw: Json, max_seq_len: int) -> tuple[float, RopeScaling | None]:
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"rope_scaling should be an object or null, found {shown(rope)}")
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError("rotary parameters that differ by layer are not supported")
    for section in (raw, rope):
        if number(section, "partial_rotary_factor", 1, least=0, most=1) != 1:
            raise UserError("partial_rotary_factor other than 1 is not supported")
    theta = _rope_number(raw, "rope_theta", 10000.0)
    theta = _rope_number(rope, "rope_theta", theta)
    kind = text(rope, "rope_type", text(rope, "type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"rope type {shown(kind)} is not supported, only default and llama3")
    original = integer(rope, "original_max_position_embeddings", max_seq_len)
    factor = _rope_number(rope, "factor")
    low = _rope_number(rope, "low_freq_factor")
    high = _rope_number(rope, "high_freq_factor")
    if high <= low:
        raise UserError(f"high_freq_factor {high:g} should be above low_freq_factor {low:g}")
    scaling = RopeScaling(
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_seq_len=integer(raw, "original_max_position_embeddings", original),
    )
    return theta, scaling


def _rope_number(raw: Json, key: str, default: float | None = None) -> float:
    return number(raw, key, default, least=_LEAST_ROPE, most=_MOST_ROPE)
