"""The decoder: all architectures in one block, scanned over layers or over periods of them.

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
from fqs_jax.model import rotary, vocab
from fqs_jax.model.config import REMAT_POLICIES, Layer, ModelConfig
from fqs_jax.model.dense import OUTPUTS_FIRST, Dense, product
from fqs_jax.model.rotary import Rope
from fqs_jax.runtime import sharding
from fqs_jax.runtime.axes import check_axes

Params = dict[str, Any]
KeysValues = tuple[jax.Array, jax.Array]  # of every layer, [L, B, T, G, H]; keys are rotated
# (query [..., N, H], key and value [..., G, H], per-layer input) -> (output [..., N, H], per-layer output)
LayerAttend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
# The same with the sliding window of the layer as its last argument.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any, int | None], tuple[jax.Array, Any]]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


class Block(nn.Module):
    """One decoder layer. Leading axes of `hidden` are free: only the last one is the width."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden: jax.Array, rope: Rope | None, attend: LayerAttend, layer_input: Any
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

        def before(x: jax.Array, name: str) -> jax.Array:
            return x if c.norms == "after" else norm(name=name)(x)

        def after(x: jax.Array, name: str) -> jax.Array:
            return x if c.norms == "before" else norm(name=name)(x)

        def qk_norm(x: jax.Array, name: str) -> jax.Array:
            if c.qk_norm == "head":
                return norm(name=f"{name}_head_norm")(x)
            heads = (-2, -1)
            whole = norm(reduction_axes=heads, feature_axes=heads, name=f"{name}_norm")
            return x if c.qk_norm == "none" else whole(x)

        leading = hidden.shape[:-1]
        normed = flat(before(hidden, "attn_norm"))
        query, key, value = (
            dense((heads, c.head_dim), use_bias=c.qkv_bias, name=name)(normed).reshape(
                *leading, heads, c.head_dim
            )
            for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads))
        )
        query, key = qk_norm(query, "q"), qk_norm(key, "k")
        if rope is not None:
            query, key = rotary.rotate(query, rope), rotary.rotate(key, rope)
        if c.query_scalar is not None:  # attention divides by sqrt(head_dim)
            query = query * math.sqrt(c.head_dim / c.query_scalar)
        # Named for the rematerialisation policies (model/config.py).
        query, key = (checkpoint_name(x, "attended") for x in (query, key))
        attended, layer_output = attend(query, key, value, layer_input)
        attended = checkpoint_name(attended, "attended")
        output = dense(
            c.width, axis=(-2, -1), use_bias=c.o_bias, kernel_init=residual_scale, name="o"
        )(attended.reshape(-1, c.num_heads, c.head_dim))
        hidden = hidden + after(output, "attn_out_norm").reshape(hidden.shape)

        normed = flat(before(hidden, "mlp_norm"))
        gate = _ACTIVATIONS[c.activation](dense(c.mlp_dim, use_bias=False, name="gate")(normed))
        up = dense(c.mlp_dim, use_bias=False, name="up")(normed)
        output = dense(c.width, use_bias=False, kernel_init=residual_scale, name="down")(gate * up)
        hidden = hidden + after(output, "mlp_out_norm").reshape(hidden.shape)
        return hidden, layer_output


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random parameters of a decoder, normal with standard deviation 0.02 (residual outputs scaled down).

    Returns:
      {embed, layers, final_norm[, head]}; layer leaves carry a leading axis of num_layers.
    """
    key_embed, key_layers, key_head = jax.random.split(key, 3)
    hidden = jnp.zeros((1, 1, config.width), config.dtype)

    def init_layer(key: jax.Array) -> Params:
        return Block(config).init(key, hidden, None, lambda q, k, v, _: (q, None), None)["params"]

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


def embed(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Token embeddings [..., D] in the compute dtype."""
    return look_up(embedding_table(params, config), tokens, config)


def embedding_table(params: Params, config: ModelConfig) -> jax.Array:
    """The embedding table [V, D] in the compute dtype, all-gathered along D, because the axis that
    shards D also shards the batch. Call it outside loops."""
    return sharding.constrain(params["embed"]["embedding"].astype(config.dtype), "V .")


def look_up(table_VxD: jax.Array, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Embeddings [..., D] of tokens, from `embedding_table`."""
    rows = sharding.constrain(table_VxD[tokens], "B" + " ." * tokens.ndim)
    scale = embedding_scale(config)
    return rows if scale == 1 else rows * jnp.asarray(scale, rows.dtype)


def embedding_scale(config: ModelConfig) -> float:
    """The factor on embeddings of tokens, rounded to the compute dtype, as in transformers."""
    scale = math.sqrt(config.width) if config.scaled_embeddings else 1.0
    return float(jnp.dtype(config.dtype).type(scale))


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
      attend: attention of the queries of `hidden`, called for each layer with rotated query and key.
      layer_inputs: pytree with a leading L axis (caches), passed to `attend` layer by layer.

    Returns:
      Final-norm hidden states [..., D] and `attend`'s second outputs stacked on a leading L axis.
    """
    hidden, outputs = run_blocks(
        params["layers"], hidden, positions, attend, config, layer_inputs, config.period
    )
    return final_norm(params, hidden, config), outputs


def final_norm(params: Params, hidden: jax.Array, config: ModelConfig) -> jax.Array:
    """The norm between the last decoder block and the head."""
    norm = nn.RMSNorm(epsilon=config.norm_eps, dtype=config.dtype, param_dtype=config.param_dtype)
    return cast(jax.Array, norm.apply({"params": params["final_norm"]}, hidden))


def run_blocks(
    layers_params: Params,
    hidden: jax.Array,
    positions: jax.Array,
    attend: Attend,
    config: ModelConfig,
    layer_inputs: Any,
    period: tuple[Layer, ...],
) -> tuple[jax.Array, Any]:
    """Some successive decoder blocks, without the norm behind the last one; see `run_layers`.

    Args:
      layers_params: stacked parameters of the blocks.
      period: kinds of the blocks, repeated up to their number.
    """
    ropes = {
        kind: rotary.tables(positions, kind, config.head_dim) for kind in dict.fromkeys(period)
    }

    def layer(place: int, kind: Layer) -> Step:
        def attend_layer(q: jax.Array, k: jax.Array, v: jax.Array, x: Any) -> tuple[jax.Array, Any]:
            return attend(q, k, v, x, kind.window)

        def step(hidden: jax.Array, xs: tuple[Params, Any]) -> tuple[jax.Array, Any]:
            # Inside of the rematerialised function: the layers of a period are not stored again.
            xs = xs if len(period) == 1 else jax.tree.map(lambda x: x[place], xs)
            layer_params, layer_input = xs
            hidden = sharding.constrain(hidden, "B" + " ." * (hidden.ndim - 1))
            rope = ropes[kind]
            return Block(config).apply(
                {"params": layer_params}, hidden, rope, attend_layer, layer_input
            )

        if config.remat == "none":
            return step
        return jax.checkpoint(step, policy=REMAT_POLICIES[config.remat], prevent_cse=False)

    layers = [layer(place, kind) for place, kind in enumerate(period)]
    stacked = layers_params, layer_inputs
    if len(layers) == 1:
        return jax.lax.scan(layers[0], hidden, stacked)
    return _scan_periods(layers, hidden, stacked)


Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def _scan_periods(layers: list[Step], hidden: jax.Array, stacked: Any) -> tuple[jax.Array, Any]:
    """Scan over whole periods, then run the layers of the last, incomplete one.

    The latter splits the stacked arrays in two, which copies them; without a remainder nothing is
    copied.

    Args:
      layers: the layers of a period; each takes its own entry of the stacked arrays of that period.
      stacked: pytree with a leading L axis.
    """
    size, num_layers = len(layers), len(jax.tree.leaves(stacked)[0])
    whole = num_layers - num_layers % size

    def period(hidden: jax.Array, xs: Any, count: int = size) -> tuple[jax.Array, Any]:
        outputs = []
        for layer in layers[:count]:
            hidden, output = layer(hidden, xs)
            outputs.append(output)
        return hidden, jax.tree.map(lambda *x: jnp.stack(x), *outputs)

    periods = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), stacked)
    hidden, outputs = jax.lax.scan(period, hidden, periods)
    outputs = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), outputs)
    if rest := num_layers - whole:
        hidden, more = period(hidden, jax.tree.map(lambda x: x[whole:], stacked), rest)
        outputs = jax.tree.map(lambda *x: jnp.concatenate(x), outputs, more)
    return hidden, outputs


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
    attend = causal_attention(config, segment_BxT, packed)
    positions_1xT = jnp.arange(tokens_BxT.shape[1])[None]
    return run_layers(params, embed(params, tokens_BxT, config), positions_1xT, attend, config)


def causal_attention(
    config: ModelConfig, segment_BxT: jax.Array | None = None, packed: bool = False
) -> Attend:
    """Attention of a causal pass over text, for `run_layers`; its second outputs are keys and values.

    Args:
      segment_BxT, packed: see `text_forward`.
    """

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array, _: None, window: int | None
    ) -> tuple[Any, Any]:
        attended = attention_lib.causal(
            query, key, value, segment_BxT, window, config.attention, packed
        )
        return attended, (key, value)

    return attend


def logits(
    params: Params, tokens_BxT: jax.Array, config: ModelConfig, segment_BxT: jax.Array | None = None
) -> jax.Array:
    """Next-token logits float32 [B, T, V] of a causal pass; for small inputs, as all exist at once."""
    return head_logits(params, text_forward(params, tokens_BxT, config, segment_BxT)[0])


def head_logits(params: Params, hidden: jax.Array) -> jax.Array:
    """Logits [..., V] in float32 of final-norm hidden states [..., D]; [R, D] for a head outputs first."""
    if OUTPUTS_FIRST in (head := params.get("head", {})):
        return product(hidden, head[OUTPUTS_FIRST].astype(hidden.dtype), jnp.float32)
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
