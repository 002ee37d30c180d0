"""Log-probabilities and samples over the vocabulary, a chunk of tokens at a time.

The logits of all tokens would be by far the largest array of a training step. These functions return
only small results of them, such as the log-probability of one id a token or one sampled id. Chunks
run along the token axes, never along the leading batch axis, so that rows may be sharded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fqs_jax.runtime import sharding

MASKED_LOGIT = -1e10  # the published code's value for ids that may not be drawn


def gathered_head(kernel_DxV: jax.Array, dtype: Any) -> jax.Array:
    """The head in the compute dtype, all-gathered along D once for all chunks. Call it outside loops."""
    return sharding.constrain(kernel_DxV.astype(dtype), ". V")


def _trained_head(kernel_DxV: jax.Array, hidden_BxXxD: jax.Array) -> jax.Array:
    """`gathered_head` for a reader with gradients: [D, V], or [g, D, V] for g groups of rows.

    Devices have different rows, so their gradients of the head must be added. A head of its own for each
    group is added over devices once; one head for all is added in every chunk.
    """
    kernel_DxV = gathered_head(kernel_DxV, hidden_BxXxD.dtype)
    groups = sharding.groups_of_rows(len(hidden_BxXxD))
    if groups == 1:
        return kernel_DxV
    return sharding.constrain(jnp.broadcast_to(kernel_DxV, (groups, *kernel_DxV.shape)), "B . V")


def log_probs(
    hidden_BxXxD: jax.Array,
    kernel_DxV: jax.Array,
    ids_BxX: jax.Array,
    *,
    chunk: int,
    temperature: float = 1.0,
    masked_ids: tuple[int, ...] = (),
) -> jax.Array:
    """log softmax(hidden @ kernel / temperature)[ids], float32; differentiable in hidden and kernel.

    Args:
      hidden_BxXxD: [B, ..., D], any number of token axes in the middle.
      ids_BxX: int32 [B, ...].
      chunk: about how many tokens' logits exist on a device at once, recomputed in the backward pass;
        0 = all at once, and stored for it.
      masked_ids: ids that get MASKED_LOGIT first.
    """

    head = _trained_head(kernel_DxV, hidden_BxXxD)

    def read(hidden: jax.Array, ids: jax.Array) -> jax.Array:
        return log_probs_of(_logits(hidden, head, masked_ids) / temperature, ids)

    return by_chunks(_recomputed(read, chunk), chunk, hidden_BxXxD, ids_BxX)


def log_probs_of(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """log softmax(logits)[ids], float32, of logits [..., V] and ids [...]."""
    # A comparison instead of a gather: its gradient fuses with the softmax's, a gather's is a scatter.
    is_target = jnp.arange(logits.shape[-1]) == ids[..., None]
    return jnp.sum(jnp.where(is_target, logits, 0.0), -1) - jax.nn.logsumexp(logits, -1)


def read(
    function: Callable[..., Any],
    hidden_BxXxD: jax.Array,
    kernel_DxV: jax.Array,
    *others_BxXx: Any,
    chunk: int,
) -> Any:
    """Apply any `function` to the logits; differentiable.

    Args:
      function: (logits float32 [B, c, V], others [B, c, ...]) -> pytree of [B, c, ...].
      others_BxXx: arrays [B, ..., and more], cut like the hidden states [B, ..., D].
      chunk: see `log_probs`.
    """

    def read_one(logits: tuple[jax.Array], *others: Any) -> Any:
        return function(*logits, *others)

    return read_several(read_one, (hidden_BxXxD,), kernel_DxV, *others_BxXx, chunk=chunk)


def read_several(
    function: Callable[..., Any],
    hiddens_BxXxD: tuple[jax.Array, ...],
    kernel_DxV: jax.Array,
    *others_BxXx: Any,
    chunk: int,
) -> Any:
    """As `read`, of several arrays of hidden states: `function` gets a tuple with the logits of each."""
    head = _trained_head(kernel_DxV, hiddens_BxXxD[0])

    def apply(hidden: jax.Array, rest: tuple[Any, ...]) -> Any:
        more, others = rest
        return function(tuple(_logits(h, head, ()) for h in (hidden, *more)), *others)

    first, *more = hiddens_BxXxD
    size = -(-chunk // len(hiddens_BxXxD))
    return by_chunks(_recomputed(apply, chunk), size, first, (tuple(more), others_BxXx))


def expected_log_probs(logits: jax.Array, temperature: float) -> jax.Array:
    """sum_v pi_1(v) log pi_T(v) with pi_T = softmax(logits / T) and no gradient through pi_1.

    From logits [..., V] to float32 [...].
    """
    probs = jax.lax.stop_gradient(jax.nn.softmax(logits))
    return jnp.sum(probs * jax.nn.log_softmax(logits / temperature), -1)


def entropies(hidden_BxXxD: jax.Array, kernel_DxV: jax.Array, *, chunk: int) -> jax.Array:
    """Entropy in nats of softmax(hidden @ kernel), float32 [B, ...]; no gradient."""
    kernel_DxV = gathered_head(kernel_DxV, hidden_BxXxD.dtype)

    def read(hidden: jax.Array, _: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(_logits(hidden, kernel_DxV, ()))
        return -jnp.sum(jnp.exp(log_p) * log_p, -1)

    unused = jnp.zeros(hidden_BxXxD.shape[:-1], jnp.int32)
    return jax.lax.stop_gradient(by_chunks(read, chunk, hidden_BxXxD, unused))


def sample(
    hidden_BxXxD: jax.Array,
    kernel_DxV: jax.Array,
    keys_BxX: jax.Array,
    *,
    chunk: int,
    temperature: float = 1.0,
    masked_ids: tuple[int, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """Draw one id a token from softmax(hidden @ kernel / temperature); no gradient.

    Args:
      keys_BxX: one typed PRNG key a token, so that a draw does not depend on batch size, chunking or
        sharding.
      temperature: 0 takes the likeliest id.

    Returns:
      int32 ids [B, ...] and the float32 entropy (nats) of the distribution drawn from; of the
      temperature-1 distribution when greedy.
    """

    kernel_DxV = gathered_head(kernel_DxV, hidden_BxXxD.dtype)

    def draw(hidden: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = _logits(hidden, kernel_DxV, masked_ids) / (temperature or 1.0)
        log_p = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
        return drawn(logits, keys) if temperature else argmax(logits), entropy

    return jax.lax.stop_gradient(by_chunks(draw, chunk, hidden_BxXxD, keys_BxX))


def drawn(logits_BxXxV: jax.Array, keys_BxX: jax.Array) -> jax.Array:
    """Draw ids, int32 [B, X], from softmax(logits), each with its own key."""
    shape = logits_BxXxV.shape[-1:]
    noise = functools.partial(jax.random.gumbel, shape=shape, dtype=jnp.float32)
    return argmax(logits_BxXxV + jax.vmap(jax.vmap(noise))(keys_BxX))


def argmax(x: jax.Array) -> jax.Array:
    """The first index of the largest element along the last axis, int32; 0 if any element is NaN.

    As two plain reductions, which vector units do well; jnp.argmax's pairs of value and index are
    compared one by one on CPU, and computed so too, with all of the noise.
    """
    size = x.shape[-1]
    index = jnp.where(x == jnp.max(x, -1, keepdims=True), jnp.arange(size), size)
    return (jnp.min(index, -1) % size).astype(jnp.int32)


def _logits(hidden: jax.Array, head: jax.Array, masked_ids: tuple[int, ...]) -> jax.Array:
    """Logits [B, ..., V], float32; `head` as from `gathered_head` or `_trained_head`."""
    # This also holds for gradients: rows keep their sharding, however the head is sharded.
    hidden = sharding.constrain(hidden, "B" + " ." * (hidden.ndim - 1))
    # All tokens along one axis, as in decoder.Block; of each group of rows, if each has its head.
    flat = hidden.reshape(*head.shape[:-2], -1, hidden.shape[-1])
    logits = jnp.matmul(flat, head, preferred_element_type=jnp.float32)
    logits = logits.reshape(*hidden.shape[:-1], -1)
    logits = sharding.constrain(logits, "B" + " ." * (logits.ndim - 2) + " V")
    for masked in masked_ids:
        logits = jnp.where(jnp.arange(logits.shape[-1]) == masked, MASKED_LOGIT, logits)
    return logits


def _recomputed(function: Callable[..., Any], chunk: int) -> Callable[..., Any]:
    """Chunked readers recompute their logits in the backward pass, others keep them.

    Arrays that a reader names `read` are kept too.
    """
    kept = jax.checkpoint_policies.save_only_these_names("read")
    return jax.checkpoint(function, policy=kept, prevent_cse=False) if chunk else function


def by_chunks(
    function: Callable[..., Any], chunk: int, hidden_BxXxD: jax.Array, others_BxXx: Any
) -> Any:
    """Apply `function` ([B, c, D], [B, c, ...]) -> pytree of [B, c, ...] to pieces of the token axes.

    Args:
      chunk: about how many tokens a device takes at once; 0 = all.
      others_BxXx: a pytree of arrays that have the token axes of `hidden_BxXxD` and any more.

    Returns:
      The results of `function`, with the token axes instead of c.
    """
    batch, *token_axes, width = hidden_BxXxD.shape
    ndim = 1 + len(token_axes)
    hidden = hidden_BxXxD.reshape(batch, -1, width)
    others = jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[ndim:]), others_BxXx)
    num_tokens = hidden.shape[1]
    rows = batch // sharding.groups_of_rows(batch)  # of one device
    per_row = max(1, chunk // rows) if chunk else num_tokens
    if per_row >= num_tokens:
        result = function(hidden, others)
    else:
        num_chunks = -(-num_tokens // per_row)
        per_row = -(-num_tokens // num_chunks)  # even pieces: less padding
        padding = num_chunks * per_row - num_tokens

        def split(x: jax.Array) -> jax.Array:
            # Repeating the last token pads keys (which have no zero) and values alike.
            x = (
                jnp.concatenate([x, jnp.repeat(x[:, -1:], padding, axis=1)], axis=1)
                if padding
                else x
            )
            return jnp.moveaxis(x.reshape(batch, num_chunks, per_row, *x.shape[2:]), 1, 0)

        pieces = jax.tree.map(split, (hidden, others))
        result = jax.lax.map(lambda xs: function(*xs), pieces)
        result = jax.tree.map(
            lambda y: jnp.moveaxis(y, 0, 1).reshape(batch, -1, *y.shape[3:])[:, :num_tokens], result
        )
    return jax.tree.map(lambda y: y.reshape(batch, *token_axes, *y.shape[2:]), result)
