"""The decoder: Llama, Mistral and Qwen2 in one block, scanned over layers.

Parameters are one plain nested dict whose layer leaves are stacked on a leading L axis, so that
sharding rules, checkpoints and Hugging Face names do not depend on Flax. Every forward variant of the
project (text, one thought step, the packed scoring pass, cached decoding) is `run_layers` with
another `attend` function; this file does not know about thoughts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fqs_jax.model import attention as attention_lib
from fqs_jax.model import vocab
from fqs_jax.model.config import REMAT_POLICIES, ModelConfig
from fqs_jax.model.lora import Dense
from fqs_jax.runtime import sharding
from fqs_jax.runtime.axes import check_axes

Params = dict[str, Any]
KeysValues = tuple[jax.Array, jax.Array]  # of every layer, [L, B, T, G, H]; keys are rotated
# (query [..., N, H], key and value [..., G, H], per-layer input) -> (output [..., N, H], per-layer output)
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


class Block(nn.Module):
    """One decoder layer. Leading axes of `hidden` are free: only the last one is the width."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend, layer_input: Any
    ) -> tuple[jax.Array, Any]:
        c = self.config
        dense = functools.partial(
            Dense,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            kernel_init=nn.initializers.normal(0.02),
        )
        norm = functools.partial(
            nn.RMSNorm, epsilon=c.norm_eps, dtype=c.dtype, param_dtype=c.param_dtype
        )
        residual_scale = nn.initializers.normal(0.02 / math.sqrt(2 * c.num_layers))

        def flat(x: jax.Array) -> jax.Array:
            # All tokens along one axis: a kernel's gradient is then a product over one axis, which
            # needs no transposed copy of its operands.
            return x.reshape(-1, x.shape[-1])

        leading = hidden.shape[:-1]
        normed = flat(norm(name="attn_norm")(hidden))
        query, key, value = (
            dense((heads, c.head_dim), use_bias=c.qkv_bias, name=name)(normed).reshape(
                *leading, heads, c.head_dim
            )
            for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads))
        )
        # Named for the rematerialisation policies (model/config.py).
        query, key = (checkpoint_name(rotate(x, rope), "attended") for x in (query, key))
        attended, layer_output = attend(query, key, value, layer_input)
        attended = checkpoint_name(attended, "attended")
        output = dense(
            c.width, axis=(-2, -1), use_bias=False, kernel_init=residual_scale, name="o"
        )(attended.reshape(-1, c.num_heads, c.head_dim))
        hidden = hidden + output.reshape(hidden.shape)

        normed = flat(norm(name="mlp_norm")(hidden))
        gate = nn.silu(dense(c.mlp_dim, use_bias=False, name="gate")(normed))
        up = dense(c.mlp_dim, use_bias=False, name="up")(normed)
        output = dense(c.width, use_bias=False, kernel_init=residual_scale, name="down")(gate * up)
        hidden = hidden + output.reshape(hidden.shape)
        return hidden, layer_output


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random parameters of a decoder, normal with standard deviation 0.02 (residual outputs scaled down).

    Returns:
      {embed, layers, final_norm[, head]}; layer leaves carry a leading axis of num_layers.
    """
    key_embed, key_layers, key_head = jax.random.split(key, 3)
    hidden = jnp.zeros((1, 1, config.width), config.dtype)
    rope = rope_tables(jnp.zeros((1, 1), jnp.int32), config)

    def init_layer(key: jax.Array) -> Params:
        return Block(config).init(key, hidden, rope, lambda q, k, v, _: (q, None), None)["params"]

    normal = nn.initializers.normal(0.02)
    params: Params = {
        "embed": {
            "embedding": normal(key_embed, (config.vocab_size, config.width), config.param_dtype)
        },
        "layers": jax.vmap(init_layer)(jax.random.split(key_layers, config.num_layers)),
        "final_norm": {"scale": jnp.ones((config.width,), config.param_dtype)},
    }
    if not config.tied_embeddings:
        params["head"] = {
            "kernel": normal(key_head, (config.width, config.vocab_size), config.param_dtype)
        }
    return params


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of `init`, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def rope_tables(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for rotary embeddings, float32, positions' shape + (1, head_dim / 2)."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if (scaling := config.rope_scaling) is not None:
        # Llama 3.1: wavelengths beyond the original context are stretched by `factor`, short ones
        # unchanged, and the band between is interpolated linearly in (context / wavelength).
        turns = scaling.original_max_seq_len * frequency / (2 * jnp.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = frequency * (keep + (1 - keep) / scaling.factor)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Apply rotary embeddings to [..., heads, H], Hugging Face's half-split layout."""
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def embed(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Token embeddings [..., D] in the compute dtype."""
    return look_up(embedding_table(params, config), tokens)


def embedding_table(params: Params, config: ModelConfig) -> jax.Array:
    """The embedding table [V, D] in the compute dtype, all-gathered along D, because the axis that
    shards D also shards the batch. Call it outside loops."""
    return sharding.constrain(params["embed"]["embedding"].astype(config.dtype), "V .")


def look_up(table_VxD: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of the embedding table, [..., D]."""
    return sharding.constrain(table_VxD[tokens], "B" + " ." * tokens.ndim)


def head_kernel(params: Params) -> jax.Array:
    """The output head [D, V]: its own matrix, or the transposed embedding table when tied."""
    return params["head"]["kernel"] if "head" in params else params["embed"]["embedding"].T


def run_layers(
    params: Params,
    hidden: jax.Array,
    positions: jax.Array,
    attend: Attend,
    config: ModelConfig,
    layer_inputs: Any = None,
) -> tuple[jax.Array, Any]:
    """The stack of decoder blocks and the final norm.

    Args:
      params: an `lm` tree.
      hidden: [..., D] embeddings.
      positions: [...] rotary position ids, same leading axes as `hidden`.
      attend: attention of the queries of `hidden`, called once per layer with rotated query and key.
      layer_inputs: pytree with a leading L axis (caches), passed to `attend` layer by layer.

    Returns:
      Final-norm hidden states [..., D] and `attend`'s second outputs stacked on a leading L axis.
    """
    rope = rope_tables(positions, config)

    def layer(hidden: jax.Array, xs: tuple[Params, Any]) -> tuple[jax.Array, Any]:
        layer_params, layer_input = xs
        hidden = sharding.constrain(hidden, "B" + " ." * (hidden.ndim - 1))
        return Block(config).apply({"params": layer_params}, hidden, rope, attend, layer_input)

    if config.remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    hidden, outputs = jax.lax.scan(layer, hidden, (params["layers"], layer_inputs))
    norm = nn.RMSNorm(epsilon=config.norm_eps, dtype=config.dtype, param_dtype=config.param_dtype)
    return cast(jax.Array, norm.apply({"params": params["final_norm"]}, hidden)), outputs


def text_forward(
    params: Params,
    tokens_BxT: jax.Array,
    config: ModelConfig,
    segment_BxT: jax.Array | None = None,
    packed: bool = False,
) -> tuple[jax.Array, KeysValues]:
    """Ordinary causal pass over text.

    Args:
      params: an `lm` tree. tokens_BxT: int32.
      segment_BxT: document of each token, 0 for padding; see `attention_xla.aligned_text`. None = one
        document a row and no padding.
      packed: must be True if a row may hold several documents; cuDNN cannot keep them apart.

    Returns:
      Final-norm hidden states [B, T, D] and the rotated keys and values, each [L, B, T, G, H].
    """
    check_axes(tokens_BxT=tokens_BxT, segment_BxT=segment_BxT)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, _: None) -> tuple[Any, Any]:
        attended = attention_lib.causal(
            query, key, value, segment_BxT, config.sliding_window, config.attention, packed
        )
        return attended, (key, value)

    positions_1xT = jnp.arange(tokens_BxT.shape[1])[None]
    return run_layers(params, embed(params, tokens_BxT, config), positions_1xT, attend, config)


def logits(
    params: Params, tokens_BxT: jax.Array, config: ModelConfig, segment_BxT: jax.Array | None = None
) -> jax.Array:
    """Next-token logits of a plain causal pass, float32 [B, T, V]. For small inputs: it holds
    the whole vocabulary."""
    hidden_BxTxD, _ = text_forward(params, tokens_BxT, config, segment_BxT)
    return head_logits(params, hidden_BxTxD)


def head_logits(params: Params, hidden: jax.Array) -> jax.Array:
    """Logits [..., V] in float32 of final-norm hidden states [..., D]."""
    kernel_DxV = head_kernel(params).astype(hidden.dtype)
    return jnp.dot(hidden, kernel_DxV, preferred_element_type=jnp.float32)


def num_params(params: Any) -> int:
    """Number of scalars in parameter trees (of arrays or of shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def label_log_probs(
    lm: Params, hidden_BxTxD: jax.Array, tokens_BxT: jax.Array, model: ModelConfig
) -> jax.Array:
    """log p(x_{t+1}) at every t but the last, float32 [B, T - 1]."""
    return vocab.log_probs(
        hidden_BxTxD[:, :-1], head_kernel(lm), tokens_BxT[:, 1:], chunk=model.vocab_chunk
    )
