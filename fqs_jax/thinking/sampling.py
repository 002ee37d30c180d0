"""Thinking step by step behind cached text: the text's keys and values are shared by all thoughts,
each step is one query a position and rationale, and nothing is differentiated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.model import attention_xla, decoder, vocab
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import sharding
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.thinking.keys import fold_in_all, thought_keys
from fqs_jax.thinking.parameters import mark


class TextCache(NamedTuple):
    """Rotated keys and values of a text pass, and which document each is of (model/attention_xla.py)."""

    key_LxBxTxGxH: jax.Array
    value_LxBxTxGxH: jax.Array
    segment_BxT: jax.Array | None


def rollout(
    params: Params,
    text: TextCache,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    index_BxP: jax.Array | None,
    *,
    finish: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Think behind cached text: K sampling steps and, to `finish`, the last token and the end mark.

    Args:
      key: for the batch, or one for every block [B, P, R].
      index_BxP: text positions at which to think; None = one block at every cached position.
      finish: whether the hidden state after the end mark is wanted; training samples without it.

    Returns:
      tokens int32 [B, P, R, K], their entropies [B, P, R, K], and the final-norm hidden state
      [B, P, R, D] of the end mark (None unless finished).
    """
    lm, c = params["lm"], model
    L, B, T, G, H = text.key_LxBxTxGxH.shape
    P = T if index_BxP is None else index_BxP.shape[1]
    K, R = thought.num_tokens, thought.rationales
    where_BxP = jnp.broadcast_to(jnp.arange(T), (B, T)) if index_BxP is None else index_BxP
    keys_BxPxR = thought_keys(key, where_BxP, R) if key.ndim == 0 else key
    if thought.tokens != "sampled" and not finish:  # nothing of the network is needed
        slots_K = jnp.arange(K)
        keys = fold_in_all(keys_BxPxR[..., None], slots_K)
        tokens, entropy = _unsampled(keys, thought, c.vocab_size)
        return tokens, entropy, None
    empty = jnp.zeros((L, B, P, R, G, K + 2 * finish, H), c.dtype)
    own = (sharding.constrain(empty, "L B P R G . H"),) * 2

    table_VxD = decoder.embedding_table(lm, c)
    kernel_DxV = vocab.gathered_head(decoder.head_kernel(lm), c.dtype)

    def run_slot(
        embedding_BxPxRxD: jax.Array, slot: jax.Array, own: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One cached step: slot `slot` (0-based) of every block."""

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            text_k, text_v, own_k, own_v = layer
            own_k = jax.lax.dynamic_update_index_in_dim(own_k, k, slot, axis=4)
            own_v = jax.lax.dynamic_update_index_in_dim(own_v, v, slot, axis=4)
            visible_M = attention_xla.causal_slots(own_k.shape[4], c.sliding_window)[slot]
            flat = (B * P * R, -1)
            own_part = attention_xla.own_slots(
                q.reshape(*flat, *q.shape[-2:]),
                own_k.reshape(B * P * R, G, -1, H).swapaxes(1, 2),
                own_v.reshape(B * P * R, G, -1, H).swapaxes(1, 2),
                visible_M[None],
            )
            own_part = own_part[0].reshape(q.shape), own_part[1].reshape(q.shape[:-1])
            slot_R = jnp.full(R, slot + 1)
            text_part = text_attention(q, text_k, text_v, index_BxP, slot_R, text.segment_BxT, c)
            return attention_xla.merge(text_part, own_part), (k, v)

        positions_BxPxR = jnp.broadcast_to(where_BxP[..., None] + slot + 1, (B, P, R))
        layers = (text.key_LxBxTxGxH, text.value_LxBxTxGxH, *own)
        hidden, new = decoder.run_layers(lm, embedding_BxPxRxD, positions_BxPxR, attend, c, layers)
        own = jax.tree.map(
            lambda o, n: jax.lax.dynamic_update_index_in_dim(o, n, slot, axis=5), own, new
        )
        return hidden, own

    def sampling_step(carry: Any, slot: jax.Array) -> tuple[Any, Any]:
        embedding_BxPxRxD, own = carry
        hidden_BxPxRxD, own = run_slot(embedding_BxPxRxD, slot, own)
        slot_keys_BxPxR = fold_in_all(keys_BxPxR, slot)
        if thought.tokens == "sampled":
            drawn = vocab.sample(
                hidden_BxPxRxD,
                kernel_DxV,
                slot_keys_BxPxR,
                chunk=c.vocab_chunk,
                temperature=thought.temperature,
                masked_ids=thought.masked_ids,
            )
        else:
            drawn = _unsampled(slot_keys_BxPxR, thought, c.vocab_size)
        if thought.tokens == "pause":
            pause_D = mark(params, "pause", model, thought)
            return (jnp.broadcast_to(pause_D, embedding_BxPxRxD.shape), own), drawn
        return (decoder.look_up(table_VxD, drawn[0]), own), drawn

    first = jnp.broadcast_to(mark(params, "start", model, thought), (B, P, R, c.width))
    (embedding, own), (tokens, entropy) = jax.lax.scan(sampling_step, (first, own), jnp.arange(K))
    after = None
    if finish:
        _, own = run_slot(embedding, jnp.array(K), own)
        end_D = mark(params, "end", model, thought)
        after, _ = run_slot(jnp.broadcast_to(end_D, first.shape), jnp.array(K + 1), own)
    return jnp.moveaxis(tokens, 0, -1), jnp.moveaxis(entropy, 0, -1), after


def _unsampled(
    keys: jax.Array, thought: ThoughtConfig, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """Thought tokens that the model has no say in, one a key, and their entropies (nats)."""
    if thought.tokens == "pause":
        return jnp.zeros(keys.shape, jnp.int32), jnp.zeros(keys.shape)
    allowed = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), thought.masked_ids)
    place = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(allowed)))(keys.reshape(-1))
    tokens = jnp.asarray(allowed)[place].reshape(keys.shape)
    return tokens, jnp.full(keys.shape, np.log(len(allowed)), jnp.float32)


def text_attention(
    query_BxPxSxNxH: jax.Array,
    key_BxTxGxH: jax.Array,
    value_BxTxGxH: jax.Array,
    index_BxP: jax.Array | None,
    slot_S: jax.Array,
    segment_BxT: jax.Array | None,
    model: ModelConfig,
) -> tuple[jax.Array, jax.Array]:
    """Block queries over text: at every position (index None, later keys skipped) or at chosen ones."""
    if index_BxP is None:
        return attention_xla.aligned_text(
            query_BxPxSxNxH, key_BxTxGxH, value_BxTxGxH, slot_S, segment_BxT, model.sliding_window
        )
    return attention_xla.indexed_text(
        query_BxPxSxNxH,
        key_BxTxGxH,
        value_BxTxGxH,
        index_BxP,
        slot_S,
        segment_BxT,
        model.sliding_window,
    )
