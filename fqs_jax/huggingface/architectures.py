"""The supported architectures: one row of a table for each `model_type`.

A row is data: the fields of ModelConfig that all its models share, the defaults of transformers, and how
config.json spells the kinds of its layers. A program that reads or writes config.json needs no name.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fqs_jax.huggingface.fields import Json, integer, shown, switch
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError

# Layers of several kinds are listed one by one; more of them are no model.
_MOST_LAYERS = 4096
_NAMES = {"full": "full_attention", "sliding": "sliding_attention"}


class Kinds(NamedTuple):
    """Two fields of ModelConfig: the window, and the kinds of the layers of a period."""

    sliding_window: int | None
    layer_types: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The properties of a `model_type`.

    Attributes:
      class_name: the transformers class named in config.json.
      read_kinds: a function from config.json to the kinds of its layers.
      write_kinds: its inverse, the keys of config.json for them.
      model: fields of ModelConfig that are the same in all its models.
      defaults: values of missing keys, where transformers has others than for Llama.
      biases: whether `attention_bias` gives the q, k, v and o projections biases.
      local_rope: the key of older transformers for the rotary base of sliding layers, whose rotary
        embedding then is their own; "" = the same in all layers.
      activation_key: the key that names the activation of the MLP.
      refused: switches of config.json that must be off, because they change what is computed.
      unset: keys that must be missing or null, for the same reason.
    """

    class_name: str
    read_kinds: Callable[[Json], Kinds]
    write_kinds: Callable[[ModelConfig], dict[str, Any]]
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    biases: bool = False
    local_rope: str = ""
    activation_key: str = "hidden_act"
    refused: tuple[str, ...] = ("mlp_bias",)
    unset: tuple[str, ...] = ()


def _no_window(raw: Json) -> Kinds:
    return Kinds(None)


def _mistral_window(raw: Json) -> Kinds:
    return Kinds(_window(raw))


def _window(raw: Json) -> int | None:
    """Null is full attention, and a missing key is transformers' default."""
    if "sliding_window" in raw and raw["sliding_window"] is None:
        return None
    return integer(raw, "sliding_window", 4096)


def _qwen_kinds(raw: Json) -> Kinds:
    """Layers from `max_window_layers` on have the window, if `use_sliding_window` is true."""
    window = _window(raw)
    layers = integer(raw, "num_hidden_layers")
    first = integer(raw, "max_window_layers", 28, least=0)
    listed = _listed_types(raw)
    if window is None or not switch(raw, "use_sliding_window"):
        return Kinds(None)
    return _kinds(window, listed or _windowed_from(first, layers))


def _write_qwen_kinds(config: ModelConfig) -> dict[str, Any]:
    return {
        "sliding_window": config.sliding_window,
        "use_sliding_window": config.sliding_window is not None,
        # Layers from this one on have the window.
        "max_window_layers": [*_all_types(config), "sliding"].index("sliding"),
    }


def _olmo3_kinds(raw: Json) -> Kinds:
    """Every fourth layer sees all keys, unless `layer_types` says otherwise."""
    default = ("sliding", "sliding", "sliding", "full")
    return _kinds(_window(raw), _listed_types(raw) or _cut(default, raw))


def _write_olmo3_kinds(config: ModelConfig) -> dict[str, Any]:
    return {
        "sliding_window": config.sliding_window,
        "layer_types": [_NAMES.get(kind, kind) for kind in _all_types(config)],
    }


def _gemma3_kinds(raw: Json) -> Kinds:
    """Every sixth layer sees all keys, unless `layer_types` or `sliding_window_pattern` says otherwise."""
    size = integer(raw, "_sliding_window_pattern", 6, most=_MOST_LAYERS)
    size = integer(raw, "sliding_window_pattern", size, most=_MOST_LAYERS)
    default = ("sliding",) * (size - 1) + ("full",)
    return _kinds(_window(raw), _listed_types(raw) or _cut(default, raw))


def _write_gemma3_kinds(config: ModelConfig) -> dict[str, Any]:
    # Versions before 4.53 know the pattern alone, so only regular ones are written.
    size = [*_all_types(config), "full"].index("full") + 1
    period = ("sliding_attention",) * (size - 1) + ("full_attention",)
    return {
        "sliding_window": config.sliding_window,
        "sliding_window_pattern": size,
        "layer_types": _listed(period, config.num_layers),
    }


def _smollm3_kinds(raw: Json) -> Kinds:
    """Every fourth layer is not rotated, unless the config says otherwise: 0 in `no_rope_layers`."""
    if switch(raw, "use_sliding_window") and raw.get("sliding_window") is not None:
        raise UserError("use_sliding_window true is not supported for smollm3")
    layers = integer(raw, "num_hidden_layers")
    size = integer(raw, "no_rope_layer_interval", 4, most=_MOST_LAYERS)
    if (rotated := raw.get("no_rope_layers")) is None:
        return _kinds(None, _cut(("full",) * (size - 1) + ("no_rope",), raw))
    if (
        not isinstance(rotated, list)
        or len(rotated) < layers
        or any(one not in (0, 1) for one in rotated)
    ):
        raise UserError(
            f"no_rope_layers should be a list of {layers} numbers 0 or 1, found {shown(rotated)}"
        )
    return _kinds(None, tuple("full" if one else "no_rope" for one in rotated[:layers]))


def _write_smollm3_kinds(config: ModelConfig) -> dict[str, Any]:
    return {
        "no_rope_layers": [int(kind != "no_rope") for kind in _all_types(config)],
        "use_sliding_window": False,
        "sliding_window": config.sliding_window,
    }


def _kinds(window: int | None, types: Sequence[str]) -> Kinds:
    """The shortest period of the layers' kinds; layers that are all alike need none."""
    if window is None:
        types = ["full" if kind == "sliding" else kind for kind in types]
    if "sliding" not in types:
        window = None
    size = next(n for n in range(1, len(types) + 1) if types[n:] == types[: len(types) - n])
    period = tuple(types[:size])
    return Kinds(window, () if period in (("full",), ("sliding",)) else period)


def _listed_types(raw: Json) -> tuple[str, ...] | None:
    """`layer_types`, checked; None if there are none."""
    if (names := raw.get("layer_types")) is None:
        return None
    layers = integer(raw, "num_hidden_layers")
    if not isinstance(names, list) or len(names) != layers:
        raise UserError(f"layer_types should be a list of {layers} names, found {shown(names)}")
    kinds = {name: kind for kind, name in _NAMES.items()}
    if not all(isinstance(name, str) and name in kinds for name in names):
        raise UserError("layer_types has other names than full_attention, sliding_attention")
    return tuple(kinds[name] for name in names)


def _cut(period: tuple[str, ...], raw: Json) -> tuple[str, ...]:
    """A period; that of a model with fewer layers ends with them."""
    return period[: integer(raw, "num_hidden_layers")]


def _windowed_from(first: int, layers: int) -> tuple[str, ...]:
    """The layers' kinds: full ones, then sliding ones from a layer on."""
    if first == 0 or first >= layers:  # all alike
        return ("sliding",) if first == 0 else ("full",)
    if layers > _MOST_LAYERS:
        raise UserError(
            f"num_hidden_layers {layers} is too many for layers of several kinds; at most "
            f"{_MOST_LAYERS} are supported"
        )
    return ("full",) * first + ("sliding",) * (layers - first)


def _all_types(config: ModelConfig) -> list[str]:
    """The kind of every layer."""
    period = config.layer_types or ("full" if config.sliding_window is None else "sliding",)
    return _listed(period, config.num_layers)


def _listed(period: tuple[str, ...], layers: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(period), layers))


_OLMO2 = {"norms": "after", "qk_norm": "projection"}
_GEMMA3 = {
    "norms": "both",
    "qk_norm": "head",
    "activation": "gelu_tanh",
    "scaled_embeddings": True,
    "stored_norm_offset": 1.0,
}
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", _no_window, lambda config: {}, biases=True),
    "mistral": Architecture(
        "MistralForCausalLM",
        _mistral_window,
        lambda config: {"sliding_window": config.sliding_window},
        refused=("attention_bias", "mlp_bias"),
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", _qwen_kinds, _write_qwen_kinds, model={"qkv_bias": True}
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        _qwen_kinds,
        _write_qwen_kinds,
        model={"qk_norm": "head"},
        defaults={"head_dim": 128},
        biases=True,
    ),
    "smollm3": Architecture(
        "SmolLM3ForCausalLM",
        _smollm3_kinds,
        _write_smollm3_kinds,
        defaults={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
        },
        biases=True,
    ),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        _no_window,
        lambda config: {},
        model=_OLMO2,
        defaults={"rms_norm_eps": 1e-5},
        biases=True,
    ),
    "olmo3": Architecture(
        "Olmo3ForCausalLM",
        _olmo3_kinds,
        _write_olmo3_kinds,
        model=_OLMO2,
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5},
        biases=True,
        local_rope="rope_theta",
    ),
    "gemma3_text": Architecture(
        "Gemma3ForCausalLM",
        _gemma3_kinds,
        _write_gemma3_kinds,
        model=_GEMMA3,
        defaults={
            "vocab_size": 262208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": True,
        },
        biases=True,
        local_rope="rope_local_base_freq",
        activation_key="hidden_activation",
        refused=("use_bidirectional_attention",),
        unset=("attn_logit_softcapping", "final_logit_softcapping"),
    ),
}
