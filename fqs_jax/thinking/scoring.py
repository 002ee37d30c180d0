"""Thought blocks after a text, in one differentiable pass: the second phase of a training step.

A block is the M slots of a thought (thinking/thoughts.py). All blocks go through the network at once;
each slot sees the text's keys and values up to its position, and the block's slots up to itself. Latent
thoughts are the exception: their slots follow one another (thinking/latent.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax.model import attention, attention_xla, decoder, vocab
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import KeysValues, Params
from fqs_jax.runtime.axes import check_axes
from fqs_jax.thinking import latent, talk_head
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.parameters import mark


class Text(NamedTuple):
    """A text and what a forward pass over it computed.

    Attributes:
      segment_BxT: document of each token, see `attention_xla.aligned_text`.
      hidden_BxTxD: final-norm hidden states.
      key_LxBxTxGxH, value_LxBxTxGxH: of every layer; keys are rotated.
      log_prob_BxT: log p(x_{t+1}) at t, float32; the last entry is for x_0, wrapped around.
    """

    tokens_BxT: jax.Array
    segment_BxT: jax.Array | None
    hidden_BxTxD: jax.Array
    key_LxBxTxGxH: jax.Array
    value_LxBxTxGxH: jax.Array
    log_prob_BxT: jax.Array

    @property
    def cache(self) -> KeysValues:
        return self.key_LxBxTxGxH, self.value_LxBxTxGxH

    def differentiable(self) -> dict[str, jax.Array]:
        """The fields that depend on parameters."""
        fields = self._asdict()
        return {name: fields[name] for name in fields if name not in ("tokens_BxT", "segment_BxT")}


class BlockScores(NamedTuple):
    """Scores of thought blocks at P text positions; log-probabilities are float32.

    Attributes:
      thought_BxPxRxK: log-probabilities of the thought tokens, at the REINFORCE temperature; zeros
        for latent thoughts, which have none.
      talk_BxPxRxA: log-probabilities of x_{t+1+s} under the mixed prediction, s = 0..A-1; wrapped
        around at the row's end.
      mixing_weight_BxPxRxA: weight of the thought.
      thought_only_BxPxRxA: as `talk`, for the prediction that the thought makes unmixed; None unless
        requested.
      correct_BxPxRxA: bool, whether x_{t+1+s} is the likeliest token of the mixed prediction; None
        unless requested.
    """

    thought_BxPxRxK: jax.Array
    talk_BxPxRxA: jax.Array
    mixing_weight_BxPxRxA: jax.Array
    thought_only_BxPxRxA: jax.Array | None = None
    correct_BxPxRxA: jax.Array | None = None


def read_text(
    params: Params,
    tokens_BxT: jax.Array,
    model: ModelConfig,
    segment_BxT: jax.Array | None = None,
    packed: bool = False,
) -> Text:
    """The differentiable text pass; `packed` as in `decoder.text_forward`."""
    lm = params["lm"]
    hidden_BxTxD, cache = decoder.text_forward(lm, tokens_BxT, model, segment_BxT, packed)
    next_BxT = jnp.roll(tokens_BxT, -1, axis=1)
    log_prob_BxT = vocab.log_probs(
        hidden_BxTxD, decoder.head_kernel(lm), next_BxT, chunk=model.vocab_chunk
    )
    return Text(tokens_BxT, segment_BxT, hidden_BxTxD, *cache, log_prob_BxT)


def score_blocks(
    params: Params,
    text: Text,
    thought_BxPxRxK: jax.Array,
    thinker: Thinker,
    index_BxP: jax.Array | None = None,
    spans: int = 1,
    thought_only: bool = False,
    correct: bool = False,
) -> BlockScores:
    """One differentiable pass over thought blocks behind a text.

    Args:
      thought_BxPxRxK: int32, the thoughts' tokens.
      index_BxP: text positions of the blocks; None = all T.
      spans: see `attention_xla.indexed_text`.
      thought_only: compute the unmixed predictions as well.
      correct: find the likeliest tokens of the mixed predictions as well. `probability` mixing reads
        the head once more for it, without gradient: the plain prediction at every talk step.
    """
    model, thought, K = thinker.model, thinker.thought, thinker.thought.num_tokens
    check_axes(
        **text._asdict(),
        thought_BxPxRxK=thought_BxPxRxK,
        index_BxP=index_BxP,
        D=model.width,
        K=K,
    )
    B, P, R, _ = thought_BxPxRxK.shape  # R is 1 where rationales are rows
    everywhere_BxT = jnp.broadcast_to(jnp.arange(text.tokens_BxT.shape[1]), text.tokens_BxT.shape)
    position_BxP = everywhere_BxT if index_BxP is None else index_BxP
    block_BxPxRxMxD = _block_hidden(
        params, text, thought_BxPxRxK, position_BxP, thinker, index_BxP, spans
    )
    kernel_DxV = decoder.head_kernel(params["lm"])
    thought_log_probs = jnp.zeros(thought_BxPxRxK.shape)
    if thought.tokens != "latent":
        thought_log_probs = vocab.log_probs(
            block_BxPxRxMxD[..., :K, :],  # start and the first K - 1 tokens predict the K tokens
            kernel_DxV,
            thought_BxPxRxK,
            chunk=model.vocab_chunk,
            temperature=thought.reinforce_temperature,
            masked_ids=thought.masked_ids,
        )

    talk = _talk_scores(
        params,
        kernel_DxV,
        text,
        block_BxPxRxMxD[..., K + 1 :, :],  # the end mark and the forced tokens
        position_BxP,
        thinker,
        thought_only,
        correct,
    )
    return BlockScores(thought_log_probs, **talk)


def _talk_scores(
    params: Params,
    kernel_DxV: jax.Array,
    text: Text,
    after_BxPxRxAxD: jax.Array,
    position_BxP: jax.Array,
    thinker: Thinker,
    thought_only: bool,
    correct: bool,
) -> dict[str, Any]:
    """The fields of `BlockScores` about the talk steps, from the hidden states after thoughts."""
    thought, chunk = thinker.thought, thinker.model.vocab_chunk
    *shape, A, _ = after_BxPxRxAxD.shape
    base_BxPx1xAxD = ahead(text.hidden_BxTxD, position_BxP, A)[:, :, None]
    score_BxPxRxA = head_score(params, base_BxPx1xAxD, after_BxPxRxAxD, thought)
    weight_BxPxRxA = talk_head.weight(score_BxPxRxA, thought.mixing)
    target_BxPx1xA = ahead(text.tokens_BxT, position_BxP + 1, A)[:, :, None]
    target_BxPxRxA = jnp.broadcast_to(target_BxPx1xA, (*shape, A))

    def read(hidden_BxPxRxAxD: jax.Array) -> jax.Array:
        return vocab.log_probs(hidden_BxPxRxAxD, kernel_DxV, target_BxPxRxA, chunk=chunk)

    only_BxPxRxA = correct_BxPxRxA = None
    if thought.mixing == "probability":
        if correct:
            base_BxPxRxAxD = jnp.broadcast_to(base_BxPx1xAxD, after_BxPxRxAxD.shape)
            only_BxPxRxA, correct_BxPxRxA = vocab.read_several(
                _read_mixture,
                (after_BxPxRxAxD, jax.lax.stop_gradient(base_BxPxRxAxD)),
                kernel_DxV,
                target_BxPxRxA,
                score_BxPxRxA,
                chunk=chunk,
            )
        else:
            only_BxPxRxA = read(after_BxPxRxAxD)
        base_BxPx1xA = ahead(text.log_prob_BxT, position_BxP, A)[:, :, None]
        talk_BxPxRxA = talk_head.mix_log_probs(base_BxPx1xA, only_BxPxRxA, score_BxPxRxA)
    else:
        only_BxPxRxA = read(after_BxPxRxAxD) if thought_only else None
        mixed_BxPxRxAxD = talk_head.mix_hidden(base_BxPx1xAxD, after_BxPxRxAxD, weight_BxPxRxA)
        if correct:
            talk_BxPxRxA, correct_BxPxRxA = vocab.read(
                _read_mixed, mixed_BxPxRxAxD, kernel_DxV, target_BxPxRxA, chunk=chunk
            )
        else:
            talk_BxPxRxA = read(mixed_BxPxRxAxD)
    return {
        "talk_BxPxRxA": talk_BxPxRxA,
        "mixing_weight_BxPxRxA": weight_BxPxRxA,
        "thought_only_BxPxRxA": only_BxPxRxA if thought_only else None,
        "correct_BxPxRxA": correct_BxPxRxA,
    }


def _read_mixed(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A target's log-probability, and whether it is the likeliest token; logits [..., V]."""
    return vocab.log_probs_of(logits, target), vocab.argmax(jax.lax.stop_gradient(logits)) == target


def _read_mixture(
    logits: tuple[jax.Array, jax.Array], target: jax.Array, score: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A target's log-probability after the thought alone, and whether it is likeliest in the mixture.

    Args:
      logits: after the thought, and of the plain prediction, [..., V].
      score: the talk head's, see `talk_head.mix_log_probs`.
    """
    after, base, score = jax.lax.stop_gradient((*logits, score))
    mixed = talk_head.mix_log_probs(
        jax.nn.log_softmax(base), jax.nn.log_softmax(after), score[..., None]
    )
    return vocab.log_probs_of(logits[0], target), vocab.argmax(mixed) == target


def head_score(
    params: Params, base: jax.Array, after: jax.Array, thought: ThoughtConfig
) -> jax.Array:
    """The talk head's score with the configured bias."""
    score = talk_head.score(params["thought"]["talk_head"], base, after)
    return score if thought.mixing == "linear" else score + thought.mixing_bias


def _block_hidden(
    params: Params,
    text: Text,
    thought_BxPxRxK: jax.Array,
    position_BxP: jax.Array,
    thinker: Thinker,
    index_BxP: jax.Array | None,
    spans: int,
) -> jax.Array:
    """Final-norm hidden states [B, P, R, M, D] of the blocks; see `score_blocks`."""
    model, M = thinker.model, thinker.thought.num_slots
    B, P, R, K = thought_BxPxRxK.shape
    segment_BxT = text.segment_BxT
    if is_latent := thinker.thought.tokens == "latent":
        thought_BxPxRxK = thought_BxPxRxK[..., :0]  # there is no token to look up
    embeddings = _block_embeddings(params, text.tokens_BxT, thought_BxPxRxK, position_BxP, thinker)
    if is_latent:
        return latent.block_hidden(
            params["lm"],
            text.cache,
            embeddings,
            K,
            position_BxP,
            model,
            segment_BxT,
            index_BxP,
            spans,
        )
    slot_RM = jnp.tile(jnp.arange(1, M + 1), R)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, layer: Any, window: int | None
    ) -> tuple[jax.Array, None]:
        text_k, text_v = layer
        if index_BxP is None:
            return attention.blocks(
                q, k, v, text_k, text_v, M, segment_BxT, window, model.attention
            ), None
        over_text = attention_xla.indexed_text(
            q, text_k, text_v, index_BxP, slot_RM, segment_BxT, window, spans
        )
        return attention_xla.merge(over_text, attention_xla.own_blocks(q, k, v, M, window)), None

    hidden, _ = decoder.run_layers(
        params["lm"],
        embeddings.reshape(B, P, R * M, model.width),
        position_BxP[..., None] + slot_RM,
        attend,
        model,
        text.cache,
    )
    return hidden.reshape(B, P, R, M, model.width)


def _block_embeddings(
    params: Params,
    tokens_BxT: jax.Array,
    thought_BxPxRxK: jax.Array,
    position_BxP: jax.Array,
    thinker: Thinker,
) -> jax.Array:
    """Input embeddings [B, P, R, M, D] of the blocks."""
    B, P, R, K = thought_BxPxRxK.shape
    model, thought = thinker.model, thinker.thought
    A, D = thought.n_ahead_talk, model.width
    forced_BxPxA = ahead(tokens_BxT, position_BxP + 1, A - 1)
    # One look-up for all, so that the table has one gradient.
    ids = jnp.concatenate([thought_BxPxRxK.reshape(B, -1), forced_BxPxA.reshape(B, -1)], axis=1)
    drawn, forced = jnp.split(decoder.embed(params["lm"], ids, model), [P * R * K], axis=1)
    start_D, end_D = (mark(params, name, thinker) for name in ("start", "end"))
    if thought.tokens == "pause":
        drawn = jnp.broadcast_to(mark(params, "pause", thinker), drawn.shape)
    blocks = [
        jnp.broadcast_to(start_D, (B, P, R, 1, D)),
        drawn.reshape(B, P, R, K, D),
        jnp.broadcast_to(end_D, (B, P, R, 1, D)),
        jnp.broadcast_to(forced.reshape(B, P, 1, A - 1, D), (B, P, R, A - 1, D)),
    ]
    return jnp.concatenate(blocks, axis=3)


def ahead(x_BxTx: jax.Array, position_BxP: jax.Array, steps: int) -> jax.Array:
    """x at positions t, t + 1, ... from each t of `position_BxP`, wrapped around: [B, P, steps, ...]."""
    B, P = position_BxP.shape
    index_BxPA = ((position_BxP[..., None] + jnp.arange(steps)) % x_BxTx.shape[1]).reshape(B, -1)
    more = (1,) * (x_BxTx.ndim - 2)
    found = jnp.take_along_axis(x_BxTx, index_BxPA.reshape(B, -1, *more), axis=1)
    return found.reshape(B, P, steps, *x_BxTx.shape[2:])
