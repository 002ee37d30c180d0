"""config.json to ModelConfig, by the table of architectures.

The layouts of old and new transformers versions are read. A missing key has the default of transformers.
Every value is checked for its type and range; that the sizes are those of the weights is checked when the
weights are read.
"""

from __future__ import annotations

from pathlib import Path

from fqs_jax.huggingface import contents, kinds, rope
from fqs_jax.huggingface.architectures import ARCHITECTURES
from fqs_jax.huggingface.fields import Json, integer, number, shown, switch
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

# Names of an activation in config.json, by ours.
ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}


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
        return parse(kinds.text_part(raw, ARCHITECTURES))
    except UserError as error:
        raise UserError(f"{inputs.name(path)}: {error}") from error


def parse(given: Json) -> ModelConfig:
    """The architecture that the content of a config.json describes; see `read_config`."""
    model_type = given.get("model_type")
    kinds.check_layers(given)
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(f"model_type {shown(model_type)} is none of {', '.join(ARCHITECTURES)}")
    row = ARCHITECTURES[model_type]
    missing = {key: value for key, value in row.defaults.items() if given.get(key) is None}
    raw = {**given, **missing}
    activation = row.model.get("activation", "silu")
    names = ACTIVATIONS[activation]
    if (act := raw.get(row.activation_key, names[0])) not in names:
        raise UserError(f"{row.activation_key} {shown(act)} is not supported, only {names[0]}")
    for key in row.refused:
        if switch(raw, key):
            raise UserError(f"{key} true is not supported for {model_type}")
    for key in row.unset:
        if raw.get(key) is not None:
            raise UserError(f"{key} {shown(raw[key])} is not supported for {model_type}")
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
    scalar = None
    if "query_pre_attn_scalar" in row.defaults:
        scalar = number(raw, "query_pre_attn_scalar", least=1e-6, most=1e9)
    max_seq_len = integer(raw, "max_position_embeddings", 2048)
    layers = row.read_kinds(raw)
    rotary = rope.read(raw, row, max_seq_len, sliding=layers.sliding_window is not None)
    biases = {key: row.biases and switch(raw, "attention_bias") for key in ("qkv_bias", "o_bias")}
    return ModelConfig(
        vocab_size=integer(raw, "vocab_size"),
        width=width,
        num_layers=integer(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=integer(raw, "intermediate_size"),
        max_seq_len=max_seq_len,
        norm_eps=number(raw, "rms_norm_eps", 1e-6, least=0, most=1),
        tied_embeddings=switch(raw, "tie_word_embeddings"),
        query_scalar=None if scalar == head_dim else scalar,
        **layers._asdict(),
        **rotary._asdict(),
        **biases | dict(row.model),
    )
