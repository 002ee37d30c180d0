"""Attention over shared text keys and over a position's own thought slots, merged by log-sum-exp.

A query of a thought block at text position t sees text j <= t and its own slots up to itself. The
two parts are computed apart, each with its log-sum-exp, and merged exactly; nothing of size
T x (T * slots) is ever made, and text keys are shared by all slots and rationales, never copied.

Softmax runs in float32. `slot` below is a query's distance behind its text position: 0 for text
itself, m for the m-th slot of a thought block; a sliding window counts text position + slot.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
      segment_BxT: number of the document that each text position is of, int32: queries see keys of
        their own document only. Or bool, one document a row: False is padding, which nobody sees.
        None = one document a row and no padding.
      window: sliding window, or None.

    Returns:
      Attended values [B, T, S, N, H] and float32 log-sum-exp [B, T, S, N].
    """
    length = query_BxTxSxNxH.shape[1]
    index_T = jnp.arange(length)
    parts = []
    for start in range(0, length, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, length)
        # Keys before this one are behind the window of every query of the chunk.
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
) -> tuple[jax.Array, jax.Array]:
    """Text part of the attention for queries at chosen text positions `index_BxP`; see aligned_text."""
    segments = None
    if segment_BxT is not None:
        segments = jnp.take_along_axis(segment_BxT, index_BxP, axis=1), segment_BxT
    bias = _text_bias(index_BxP, jnp.arange(key_BxTxGxH.shape[1]), slot_S, window, segments)
    return _attend(query_BxPxSxNxH, key_BxTxGxH, value_BxTxGxH, bias)


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
    C, S, N, H = query_CxSxNxH.shape
    G = key_CxMxGxH.shape[2]
    bias_SxM = jnp.where(visible_SxM, 0.0, _MASKED).astype(jnp.float32)
    query = query_CxSxNxH.reshape(C, S, G, N // G, H)
    logits = jnp.einsum("csgnh,cmgh->cgnsm", query, key_CxMxGxH, preferred_element_type=jnp.float32)
    probs, lse = _softmax(logits * H**-0.5 + bias_SxM)
    output = jnp.einsum("cgnsm,cmgh->csgnh", probs.astype(value_CxMxGxH.dtype), value_CxMxGxH)
    return output.reshape(C, S, N, H), lse.transpose(0, 3, 1, 2).reshape(C, S, N)


def merge(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Softmax over the union of two disjoint key sets, from each set's (output, log-sum-exp)."""
    (output_a, lse_a), (output_b, lse_b) = first, second
    share_a = jax.nn.sigmoid(lse_a - lse_b)[..., None].astype(output_a.dtype)
    return share_a * output_a + (1 - share_a) * output_b


def causal_slots(num_slots: int, window: int | None) -> jax.Array:
    """Which slots see which: bool [M, M], earlier or same, within the window."""
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
        query_BxQ, key_BxJ = segments
        real = key_BxJ.dtype == bool  # then nobody sees padding, which itself sees the text
        same = key_BxJ[:, None] if real else query_BxQ[:, :, None] == key_BxJ[:, None]
        visible &= same[:, :, None]
    return jnp.where(visible, 0.0, _MASKED).astype(jnp.float32)


def _attend(
    query_BxQxSxNxH: jax.Array,
    key_BxJxGxH: jax.Array,
    value_BxJxGxH: jax.Array,
    bias_BxQxSxJ: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Grouped-query attention with an additive mask; returns output and log-sum-exp."""
    B, Q, S, N, H = query_BxQxSxNxH.shape
    G = key_BxJxGxH.shape[2]
    query = query_BxQxSxNxH.reshape(B, Q, S, G, N // G, H)
    logits = jnp.einsum(
        "bqsgnh,bjgh->bgnqsj", query, key_BxJxGxH, preferred_element_type=jnp.float32
    )
    probs, lse = _softmax(logits * H**-0.5 + bias_BxQxSxJ[:, None, None])
    output = jnp.einsum("bgnqsj,bjgh->bqsgnh", probs.astype(value_BxJxGxH.dtype), value_BxJxGxH)
    return output.reshape(B, Q, S, N, H), lse.transpose(0, 3, 4, 1, 2).reshape(B, Q, S, N)


def _softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax over the last axis and its log-sum-exp."""
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    exped = jnp.exp(logits - highest)
    total = jnp.sum(exped, axis=-1, keepdims=True)
    return exped / total, (jnp.log(total) + highest)[..., 0]
