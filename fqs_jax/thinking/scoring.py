"""Thought blocks behind a text, in one differentiable pass: the second phase of a training step.

A block is the M slots of a thought (thinking/thoughts.py). All blocks go through the network at once; each
sees the text's keys and values up to its position, and its own slots up to each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax.model import attention, attention_xla, decoder, vocab
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import talk_head
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.thinking.parameters import mark


class Text(NamedTuple):
    """A text pass: what blocks look at, and what the plain prediction is.

    hidden_BxTxD: final-norm hidden states. key, value: rotated, of every layer.
    log_prob_BxT: log p(x_{t+1}) at t, float32; the last entry is for x_0, wrapped around.
    """

    hidden_BxTxD: jax.Array
    key_LxBxTxGxH: jax.Array
    value_LxBxTxGxH: jax.Array
    log_prob_BxT: jax.Array


class BlockScores(NamedTuple):
    """What is read off thought blocks at P text positions; log-probabilities are float32.

    thought_BxPxRxK: of the sampled tokens, at the REINFORCE temperature.
    talk_BxPxRxA: of x_{t+1+s} under the mixed prediction, s = 0..A-1; wrapped around at the row's end.
    mixing_weight_BxPxRxA: weight of the thought.
    alone_BxPxRxA: as `talk`, under the prediction that the thought makes alone; None where not asked for.
    """

    thought_BxPxRxK: jax.Array
    talk_BxPxRxA: jax.Array
    mixing_weight_BxPxRxA: jax.Array
    alone_BxPxRxA: jax.Array | None = None


def read_text(
    params: Params, tokens_BxT: jax.Array, model: ModelConfig, segment_BxT: jax.Array | None = None
) -> Text:
    """The differentiable text pass."""
    lm = params["lm"]
    hidden_BxTxD, (key, value) = decoder.text_forward(lm, tokens_BxT, model, segment_BxT)
    next_BxT = jnp.roll(tokens_BxT, -1, axis=1)
    log_prob_BxT = vocab.log_probs(
        hidden_BxTxD, decoder.head_kernel(lm), next_BxT, chunk=model.vocab_chunk
    )
    return Text(hidden_BxTxD, key, value, log_prob_BxT)


def score_blocks(
    params: Params,
    text: Text,
    tokens_BxT: jax.Array,
    thought_BxPxRxK: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
    spans: int = 1,
    alone: bool = False,
) -> BlockScores:
    """The blocks' part of phase two: one differentiable pass over thought blocks behind a text.

    Args:
      index_BxP: text positions of the blocks; None = all.
      spans: see `attention_xla.indexed_text`.
      alone: whether the thought's own prediction is asked for.
    """
    lm, c = params["lm"], model
    B, T = tokens_BxT.shape
    P, R, K = thought_BxPxRxK.shape[1:]
    A, M = thought.n_ahead_talk, thought.num_slots
    where_BxP = jnp.broadcast_to(jnp.arange(T), (B, T)) if index_BxP is None else index_BxP
    slot_RM = jnp.tile(jnp.arange(1, M + 1), R)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        text_k, text_v = layer
        window = c.sliding_window
        if index_BxP is None:
            return attention.blocks(
                q, k, v, text_k, text_v, M, segment_BxT, window, c.attention
            ), None
        over_text = attention_xla.indexed_text(
            q, text_k, text_v, index_BxP, slot_RM, segment_BxT, window, spans
        )
        return attention_xla.merge(over_text, attention_xla.own_blocks(q, k, v, M, window)), None

    blocks_BxPxRxMxD = _block_embeddings(
        params, tokens_BxT, thought_BxPxRxK, where_BxP, model, thought
    )
    hidden, _ = decoder.run_layers(
        lm,
        blocks_BxPxRxMxD.reshape(B, P, R * M, c.width),
        where_BxP[..., None] + slot_RM,
        attend,
        c,
        (text.key_LxBxTxGxH, text.value_LxBxTxGxH),
    )

    block_BxPxRxMxD = hidden.reshape(B, P, R, M, c.width)
    kernel_DxV = decoder.head_kernel(lm)
    thought_log_probs = vocab.log_probs(
        block_BxPxRxMxD[..., :K, :],  # start and the first K - 1 tokens predict the K tokens
        kernel_DxV,
        thought_BxPxRxK,
        chunk=c.vocab_chunk,
        temperature=thought.reinforce_temperature,
        masked_ids=thought.masked_ids,
    )

    after_BxPxRxAxD = block_BxPxRxMxD[..., K + 1 :, :]  # the end mark and the forced tokens
    base_BxPx1xAxD = ahead(text.hidden_BxTxD, where_BxP, A)[:, :, None]
    score_BxPxRxA = head_score(params, base_BxPx1xAxD, after_BxPxRxAxD, thought)
    weight_BxPxRxA = talk_head.weight(score_BxPxRxA, thought.mixing)
    target_BxPxRxA = jnp.broadcast_to(ahead(tokens_BxT, where_BxP + 1, A)[:, :, None], (B, P, R, A))

    def read(hidden_BxPxRxAxD: jax.Array) -> jax.Array:
        return vocab.log_probs(hidden_BxPxRxAxD, kernel_DxV, target_BxPxRxA, chunk=c.vocab_chunk)

    alone_BxPxRxA = None
    if alone or thought.mixing == "probability":
        alone_BxPxRxA = read(after_BxPxRxAxD)
    if thought.mixing == "probability":
        base_BxPx1xA = ahead(text.log_prob_BxT, where_BxP, A)[:, :, None]
        assert alone_BxPxRxA is not None
        talk_BxPxRxA = talk_head.mix_log_probs(base_BxPx1xA, alone_BxPxRxA, score_BxPxRxA)
    else:
        talk_BxPxRxA = read(talk_head.mix_hidden(base_BxPx1xAxD, after_BxPxRxAxD, weight_BxPxRxA))
    return BlockScores(
        thought_log_probs, talk_BxPxRxA, weight_BxPxRxA, alone_BxPxRxA if alone else None
    )


def head_score(
    params: Params, base: jax.Array, after: jax.Array, thought: ThoughtConfig
) -> jax.Array:
    """The talk head's score with the configured bias."""
    score = talk_head.score(params["thought"]["talk_head"], base, after)
    return score if thought.mixing == "linear" else score + thought.mixing_bias


def _block_embeddings(
    params: Params,
    tokens_BxT: jax.Array,
    thought_BxPxRxK: jax.Array,
    where_BxP: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
) -> jax.Array:
    """Input embeddings [B, P, R, M, D] of the blocks."""
    B, P, R, K = thought_BxPxRxK.shape
    A, D = thought.n_ahead_talk, model.width
    forced_BxPxA = ahead(tokens_BxT, where_BxP + 1, A - 1)
    # One look-up for all, so that the table has one gradient.
    ids = jnp.concatenate([thought_BxPxRxK.reshape(B, -1), forced_BxPxA.reshape(B, -1)], axis=1)
    drawn, forced = jnp.split(decoder.embed(params["lm"], ids, model), [P * R * K], axis=1)
    start_D, end_D = (mark(params, name, model, thought) for name in ("start", "end"))
    if thought.tokens == "pause":
        drawn = jnp.broadcast_to(mark(params, "pause", model, thought), drawn.shape)
    blocks = [
        jnp.broadcast_to(start_D, (B, P, R, 1, D)),
        drawn.reshape(B, P, R, K, D),
        jnp.broadcast_to(end_D, (B, P, R, 1, D)),
        jnp.broadcast_to(forced.reshape(B, P, 1, A - 1, D), (B, P, R, A - 1, D)),
    ]
    return jnp.concatenate(blocks, axis=3)


def ahead(x_BxTx: jax.Array, where_BxP: jax.Array, steps: int) -> jax.Array:
    """x at positions t, t + 1, ... behind each t of `where_BxP`, wrapped around: [B, P, steps, ...]."""
    B, P = where_BxP.shape
    index_BxPA = ((where_BxP[..., None] + jnp.arange(steps)) % x_BxTx.shape[1]).reshape(B, -1)
    more = (1,) * (x_BxTx.ndim - 2)
    found = jnp.take_along_axis(x_BxTx, index_BxPA.reshape(B, -1, *more), axis=1)
    return found.reshape(B, P, steps, *x_BxTx.shape[2:])
