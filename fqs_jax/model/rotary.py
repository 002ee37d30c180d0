"""Rotary embeddings, and the scalings of their frequencies for longer contexts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fqs_jax.model.config import AnyScaling, Layer, LinearScaling, YarnScaling

Rope = tuple[jax.Array, jax.Array]


def tables(positions: jax.Array, layer: Layer, head_dim: int) -> Rope | None:
    """Cosines and sines, float32, positions' shape + (1, head_dim / 2); None for a layer without them."""
    if layer.rope_theta is None:
        return None
    half = head_dim // 2
    frequency = layer.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if layer.rope_scaling is not None:
        frequency = _scaled(frequency, layer.rope_scaling, layer.rope_theta)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if isinstance(layer.rope_scaling, YarnScaling):
        cos, sin = (x * layer.rope_scaling.attention_factor for x in (cos, sin))
    return cos, sin


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Apply rotary embeddings to [..., heads, H], Hugging Face's half-split layout."""
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _scaled(frequency: jax.Array, scaling: AnyScaling, theta: float) -> jax.Array:
    if isinstance(scaling, LinearScaling):
        return frequency / scaling.factor
    if isinstance(scaling, YarnScaling):
        keep = _yarn_kept(len(frequency), scaling, theta)
    else:
        # Llama 3.1: wavelengths beyond the original context are stretched by `factor`, short ones
        # unchanged, and the band between is interpolated linearly in (context / wavelength).
        turns = scaling.original_max_seq_len * frequency / (2 * jnp.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (keep + (1 - keep) / scaling.factor)


def _yarn_kept(half: int, scaling: YarnScaling, theta: float) -> jax.Array:
    """The share of each component's frequency that YaRN keeps, float32 [half] (section 3.2)."""

    def component(turns: float) -> float:
        """The component, of any real number, that turns so often within the original context."""
        wavelength = scaling.original_max_seq_len / (2 * math.pi * turns)
        return half * math.log(wavelength) / math.log(theta)

    low, high = component(scaling.beta_fast), component(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
        high += 0.001  # as transformers: a step instead of a ramp
    return 1 - jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)
