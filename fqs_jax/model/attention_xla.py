"""Attention over shared text keys and over a position's own thought slots, merged by log-sum-exp.

A query of a thought block at text position t sees text j <= t and its own slots up to itself. The
two parts are computed separately, each with its log-sum-exp, and merged exactly. No array of size
T x (T * slots) exists, and all slots and rationales share the text's keys without copies.

Softmax runs in float32. `slot` below is a query's distance behind its text position: 0 for text
itself, m for the m-th slot of a thought block; a sliding window counts text position + slot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

# Queries of this many text positions share one block of logits; later keys are skipped, which
# saves up to half of a causal pass and bounds its memory.
QUERY_CHUNK = 64
_MASKED = -1e30  # finite: a fully masked part must merge as weight 0, not as NaN


def causal(
    query_BxTxNxH: jax.Array,
    key_BxTxGxH: jax.Array,
    value_BxTxGxH: jax.Array,
    segment_BxT: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """Causal attention of a text over itself, [B, T, N, H]."""
    output, _ = aligned_text(
        query_BxTxNxH[:, :, None],
        key_BxTxGxH,
        value_BxTxGxH,
        jnp.zeros(1, jnp.int32),
        segment_BxT,
        window,
    )
    return output[:, :, 0]


def aligned_text(
    query_BxTxSxNxH: jax.Array,
    key_BxTxGxH: jax.Array,
    value_BxTxGxH: jax.Array,
    slot_S: jax.Array,
    segment_BxT: jax.Array | None,
    window: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Text part of the attention when every text position has queries: S of them at each of T.

    Args:
      slot_S: int32, distances of the S queries behind their text position.
      segment_BxT: number of the document of each token, int32, 0 for padding (a bool mask is one
        document a row). Queries see keys of their own document only. No query sees padding; queries of
        padding see all text before them. None = one document a row and no padding.
      window: sliding window, or None.

    Returns:
      Attended values [B, T, S, N, H] and float32 log-sum-exp [B, T, S, N].
    """
    length = query_BxTxSxNxH.shape[1]
    index_T = jnp.arange(length)
    parts = []
    for start in range(0, length, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, length)
        # Earlier keys are outside the window of every query of the chunk.
        first = max(0, start - window + 1) if window else 0
        parts.append(
            _attend(
                query_BxTxSxNxH[:, start:stop],
                key_BxTxGxH[:, first:stop],
                value_BxTxGxH[:, first:stop],
                _text_bias(
                    index_T[None, start:stop],
                    index_T[first:stop],
                    slot_S,
                    window,
                    None
                    if segment_BxT is None
                    else (segment_BxT[:, start:stop], segment_BxT[:, first:stop]),
                ),
            )
        )
    if len(parts) == 1:
        return parts[0]
    outputs, lses = zip(*parts, strict=True)
    return jnp.concatenate(outputs, axis=1), jnp.concatenate(lses, axis=1)


def indexed_text(
    query_BxPxSxNxH: jax.Array,
    key_BxTxGxH: jax.Array,
    value_BxTxGxH: jax.Array,
    index_BxP: jax.Array,
    slot_S: jax.Array,
    segment_BxT: jax.Array | None,
    window: int | None,
    spans: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Text part of the attention for queries at chosen text positions `index_BxP`; see aligned_text.

    Args:
      spans: keys after the last position of `index_BxP` are skipped, rounded up to a multiple of
        1 / spans of the text.
    """
    length = key_BxTxGxH.shape[1]
    segments = None
    if segment_BxT is not None:
        segments = jnp.take_along_axis(segment_BxT, index_BxP, axis=1), segment_BxT
    bias = _text_bias(index_BxP, jnp.arange(length), slot_S, window, segments)
    stops = [-(-length * i // spans) for i in range(1, spans + 1)]
    span = jnp.max(index_BxP) * spans // length
    return _attend(query_BxPxSxNxH, key_BxTxGxH, value_BxTxGxH, bias, tuple(stops), span)


def own_slots(
    query_CxSxNxH: jax.Array,
    key_CxMxGxH: jax.Array,
    value_CxMxGxH: jax.Array,
    visible_SxM: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Attention of the slots of many small blocks, each over its own keys only.

    Args:
      query_CxSxNxH: C blocks (row, position, rationale) of S queries.
      visible_SxM: bool, which of the M own keys each query sees.

    Returns:
      Attended values [C, S, N, H] and float32 log-sum-exp [C, S, N].
    """
    bias_1xSx1xM = jnp.where(visible_SxM, 0.0, _MASKED).astype(jnp.float32)[None, :, None]
    output, lse = _attend(query_CxSxNxH[:, :, None], key_CxMxGxH, value_CxMxGxH, bias_1xSx1xM)
    return output[:, :, 0], lse[:, :, 0]


def own_blocks(
    query_BxPxSxNxH: jax.Array,
    key_BxPxSxGxH: jax.Array,
    value_BxPxSxGxH: jax.Array,
    num_slots: int,
    window: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Whole blocks over themselves: the S queries of a position are blocks of `num_slots`.

    Returns:
      Attended values [B, P, S, N, H] and float32 log-sum-exp [B, P, S, N].
    """

    def block(x: jax.Array) -> jax.Array:
        return x.reshape(-1, num_slots, *x.shape[3:])

    output, lse = own_slots(
        block(query_BxPxSxNxH),
        block(key_BxPxSxGxH),
        block(value_BxPxSxGxH),
        causal_slots(num_slots, window),
    )
    return output.reshape(query_BxPxSxNxH.shape), lse.reshape(query_BxPxSxNxH.shape[:-1])


def merge(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Softmax over the union of two disjoint key sets, from each set's (output, log-sum-exp)."""
    (output_a, lse_a), (output_b, lse_b) = first, second
    share_a = jax.nn.sigmoid(lse_a - lse_b)[..., None].astype(output_a.dtype)
    return share_a * output_a + (1 - share_a) * output_b


def causal_slots(num_slots: int, window: int | None) -> jax.Array:
    """Visibility of a block's slots, bool [query M, key M]: earlier ones and itself, within the window."""
    distance = jnp.arange(num_slots)[:, None] - jnp.arange(num_slots)[None]
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def _text_bias(
    index_BxQ: jax.Array,
    key_index_J: jax.Array,
    slot_S: jax.Array,
    window: int | None,
    segments: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Additive float32 mask [B or 1, Q, S or 1, J] of queries at text positions over text keys.

    Args:
      segments: of the queries [B, Q] and of the keys [B, J].
    """
    distance_BxQxJ = index_BxQ[..., None] - key_index_J
    visible = (distance_BxQxJ >= 0)[:, :, None]
    if window is not None:
        visible &= distance_BxQxJ[:, :, None] + slot_S[:, None] < window
    if segments is not None:
        query_BxQx1, key_Bx1xJ = segments[0][:, :, None], segments[1][:, None]
        # A padding query sees the text before it, so that it has a visible key too.
        same = (query_BxQx1 == key_Bx1xJ) | (query_BxQx1 == 0)
        visible &= (same & (key_Bx1xJ != 0))[:, :, None]
    return jnp.where(visible, 0.0, _MASKED).astype(jnp.float32)


def _attend(
    query_BxQxSxNxH: jax.Array,
    key_BxJxGxH: jax.Array,
    value_BxJxGxH: jax.Array,
    bias_BxQxSxJ: jax.Array,
    stops: tuple[int, ...] = (),
    span: jax.Array | int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Grouped-query attention with an additive mask; returns output and log-sum-exp.

    Every kv head's queries (position, slot, head of the group) become the rows of one matrix.
    """
    B, Q, S, N, H = query_BxQxSxNxH.shape
    J, G = key_BxJxGxH.shape[1:3]
    rows = query_BxQxSxNxH.reshape(B, Q, S, G, N // G, H).transpose(0, 3, 1, 2, 4, 5)
    bias = jnp.broadcast_to(bias_BxQxSxJ[:, :, :, None], (len(bias_BxQxSxJ), Q, S, N // G, J))
    output, lse = _rows(
        rows.reshape(B, G, -1, H),
        key_BxJxGxH.swapaxes(1, 2),
        value_BxJxGxH.swapaxes(1, 2),
        bias.reshape(-1, Q * S * N // G, J),
        jnp.asarray(span, jnp.int32),
        stops or (J,),
    )
    output = output.reshape(B, G, Q, S, N // G, H).transpose(0, 2, 3, 1, 4, 5)
    lse = lse.reshape(B, G, Q, S, N // G).transpose(0, 2, 3, 1, 4)
    return output.reshape(B, Q, S, N, H), lse.reshape(B, Q, S, N)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _rows(
    query_BxGxXxH: jax.Array,
    key_BxGxJxH: jax.Array,
    value_BxGxJxH: jax.Array,
    bias_BxXxJ: jax.Array,
    span: jax.Array,
    stops: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Attention in the layout of plain matrix products, over the keys before stops[span].

    The backward pass keeps no probabilities: it recomputes them from the log-sum-exp, transposed,
    so that the sums over queries are plain products too (as FlashAttention, arXiv 2205.14135).
    """
    return _rows_forward(query_BxGxXxH, key_BxGxJxH, value_BxGxJxH, bias_BxXxJ, span, stops)[0]


def _rows_forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    span: jax.Array,
    stops: tuple[int, ...],
) -> Any:
    def over(stop: int) -> Any:
        logits = _product("bgxh,bgjh->bgxj", query, key[:, :, :stop])
        logits = logits * query.shape[-1] ** -0.5 + bias[:, None, :, :stop]
        highest = jnp.max(logits, axis=-1)
        exped = jnp.exp(logits - highest[..., None])
        total = jnp.sum(exped, axis=-1)
        output = _product("bgxj,bgjh->bgxh", exped.astype(value.dtype), value[:, :, :stop])
        return (output / total[..., None]).astype(query.dtype), highest, jnp.log(total)

    output, highest, log_total = _switch(over, span, stops)
    # Named for the rematerialisation policies (model/config.py).
    output, highest, log_total = (
        checkpoint_name(x, "attended") for x in (output, highest, log_total)
    )
    residuals = query, key, value, bias, span, output, highest, log_total
    return (output, highest + log_total), residuals


def _rows_backward(stops: tuple[int, ...], residuals: Any, cotangents: Any) -> Any:
    query, key, value, bias, span, output, highest, log_total = residuals
    d_output, d_lse = cotangents
    shift = jnp.sum(d_output.astype(jnp.float32) * output, axis=-1) - d_lse

    def over(stop: int) -> Any:
        keys, values = key[:, :, :stop], value[:, :, :stop]
        logits = _product("bgjh,bgxh->bgjx", keys, query) * query.shape[-1] ** -0.5
        logits += bias[..., :stop].swapaxes(1, 2)[:, None]
        # Subtract in this order: both are -1e30 for a query that sees no key.
        probs = jnp.exp(logits - highest[:, :, None] - log_total[:, :, None])
        d_probs = _product("bgjh,bgxh->bgjx", values, d_output)
        d_logits = probs * (d_probs - shift[:, :, None]) * query.shape[-1] ** -0.5
        d_logits = d_logits.astype(query.dtype)
        d_query = _product("bgjx,bgjh->bgxh", d_logits, keys)
        d_key = _product("bgjx,bgxh->bgjh", d_logits, query)
        d_value = _product("bgjx,bgxh->bgjh", probs.astype(d_output.dtype), d_output)
        rest = (0, 0), (0, 0), (0, key.shape[2] - stop), (0, 0)
        return (
            d_query.astype(query.dtype),
            jnp.pad(d_key.astype(key.dtype), rest),
            jnp.pad(d_value.astype(value.dtype), rest),
        )

    no_gradient = np.zeros(span.shape, jax.dtypes.float0)
    return *_switch(over, span, stops), jnp.zeros_like(bias), no_gradient


_rows.defvjp(_rows_forward, _rows_backward)


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _switch(function: Callable[[int], Any], index: jax.Array, values: tuple[int, ...]) -> Any:
    """function(values[index]), each value compiled with its own shapes."""
    if len(values) == 1:
        return function(values[0])
    return jax.lax.switch(index, [functools.partial(function, value) for value in values])
