"""The rotary embedding in config.json, in the spellings of old and new transformers.

Old: `rope_theta` and `rope_scaling` (and a key of its own for the base of sliding layers). New:
`rope_parameters`, with an entry for each kind of layer in architectures whose kinds differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from fqs_jax.huggingface.architectures import Architecture
from fqs_jax.huggingface.fields import Json, integer, number, shown, switch, text
from fqs_jax.model.config import (
    AnyScaling,
    LinearScaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
)
from fqs_jax.runtime.errors import UserError

# The numbers of rotary embeddings lie between these: beyond them, frequencies leave float32.
_LEAST, _MOST = 1e-6, 1e30
_LAYERS = ("full_attention", "sliding_attention")


class Rope(NamedTuple):
    """Fields of ModelConfig."""

    rope_theta: float
    rope_scaling: AnyScaling | None
    local_rope_theta: float | None


def read(raw: Json, architecture: Architecture, max_seq_len: int, sliding: bool) -> Rope:
    """The rotary embedding of a config.json in which missing keys have their defaults.

    Args:
      sliding: whether there are sliding layers.

    Raises:
      UserError: a value is of the wrong type or out of range, or the embedding is not supported.
    """
    scaling, parameters = (_section(raw, key) for key in ("rope_scaling", "rope_parameters"))
    if not architecture.local_rope:
        rope = scaling or parameters
        if any(isinstance(value, dict) for value in rope.values()):
            raise UserError("rotary parameters that differ by layer are not supported")
        return Rope(*_read_one(raw, rope, max_seq_len), None)
    for key in parameters:
        if key not in _LAYERS:
            raise UserError(f"rope_parameters should have only {', '.join(_LAYERS)}")
    full, local = (_section(parameters, key) for key in _LAYERS)
    theta, found = _read_one(raw, {**full, **scaling}, max_seq_len)
    default = _number(raw, architecture.local_rope)
    local_theta, local_scaling = _read_one({**raw, "rope_theta": default}, local, max_seq_len)
    if local_scaling is not None:
        raise UserError("a scaled rotary embedding of sliding_attention layers is not supported")
    if architecture.local_rope == "rope_theta" and sliding and local_theta != theta:
        raise UserError(f"rope_theta {theta:g} and {local_theta:g} differ by layer")
    return Rope(theta, found, local_theta if sliding else None)


def keys(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """The keys of config.json for the rotary embedding, in both spellings."""
    scaling = _written(config.rope_scaling)
    full = {"rope_type": "default", "rope_theta": config.rope_theta, **scaling}
    old = {"rope_theta": config.rope_theta, "rope_scaling": scaling or None}
    if not architecture.local_rope:
        return {**old, "rope_parameters": full}
    theta = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    if architecture.local_rope != "rope_theta":
        old[architecture.local_rope] = theta
    local = {"rope_type": "default", "rope_theta": theta}
    return {**old, "rope_parameters": dict(zip(_LAYERS, (full, local), strict=True))}


def _section(raw: Json, key: str) -> dict[str, Any]:
    found = raw.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"{key} should be an object or null, found {shown(found)}")
    return found


def _read_one(raw: Json, rope: Json, max_seq_len: int) -> tuple[float, AnyScaling | None]:
    """Base and scaling of one kind of layers."""
    for section in (raw, rope):
        if number(section, "partial_rotary_factor", 1, least=0, most=1) != 1:
            raise UserError("partial_rotary_factor other than 1 is not supported")
    theta = _number(rope, "rope_theta", _number(raw, "rope_theta", 10000.0))
    kind = text(rope, "rope_type", text(rope, "type", "default"))
    if kind == "default":
        return theta, None
    if kind not in _READERS:
        raise UserError(
            f"rope type {shown(kind)} is not supported, only default, {', '.join(_READERS)}"
        )
    original = integer(rope, "original_max_position_embeddings", max_seq_len)
    original = integer(raw, "original_max_position_embeddings", original)
    if kind == "yarn" and theta <= 1:
        raise UserError(f"rope_theta {theta:g} should be above 1 for rope type yarn")
    return theta, _READERS[kind](rope, original, max_seq_len)


def _linear(rope: Json, original: int, max_seq_len: int) -> LinearScaling:
    return LinearScaling(_number(rope, "factor"))


def _llama3(rope: Json, original: int, max_seq_len: int) -> RopeScaling:
    factor = _number(rope, "factor")
    low = _number(rope, "low_freq_factor")
    high = _number(rope, "high_freq_factor")
    if high <= low:
        raise UserError(f"high_freq_factor {high:g} should be above low_freq_factor {low:g}")
    return RopeScaling(factor, low, high, original)


def _yarn(rope: Json, original: int, max_seq_len: int) -> YarnScaling:
    factor = _number(rope, "factor", max_seq_len / original)

    def magnitude(weight: float) -> float:
        """The growth of attention's logits with the length, equation 22 of arXiv 2309.00071."""
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    default = magnitude(1)
    scales = [number(rope, key, 0, least=0, most=_MOST) for key in ("mscale", "mscale_all_dim")]
    if all(scales):
        default = magnitude(scales[0]) / magnitude(scales[1])
    return YarnScaling(
        factor,
        original,
        _number(rope, "attention_factor", default),
        _number(rope, "beta_fast", 32),
        _number(rope, "beta_slow", 1),
        switch(rope, "truncate", True),
    )


_READERS: dict[str, Callable[[Json, int, int], AnyScaling]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _written(scaling: AnyScaling | None) -> dict[str, Any]:
    """A scaling as the keys of config.json, which have our names but for one."""
    if scaling is None:
        return {}
    kinds = {LinearScaling: "linear", RopeScaling: "llama3", YarnScaling: "yarn"}
    fields = dataclasses.asdict(scaling)
    if "original_max_seq_len" in fields:
        fields["original_max_position_embeddings"] = fields.pop("original_max_seq_len")
    return {"rope_type": kinds[type(scaling)], **fields}


def _number(raw: Json, key: str, default: float | None = None) -> float:
    return number(raw, key, default, least=_LEAST, most=_MOST)
