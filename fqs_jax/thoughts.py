"""Thoughts: sample them without gradient, score them in one differentiable pass.

A thought at text position t is a block of M slots behind it: the start mark, K sampled tokens, the
end mark, and A - 1 teacher-forced true tokens x_{t+1}, x_{t+2}, ... Slot m (from 1) has rotary
position t + m; it sees text up to t and its own block up to itself. `n_ahead` counts as in the
published scripts: K = n_ahead - 3 (Quiet-STaR, arXiv 2403.09629; Fast Quiet-STaR, arXiv 2505.17746).

Phase one, `sample_thoughts`: a text pass whose keys and values are shared by all rationales, then K
short cached steps, each one query a position and rationale. Phase two, `score_thoughts`: text and
all blocks through the network at once. The published code instead keeps n_ahead + n_ahead_talk - 1
passes on one tape; loss and gradients are the same.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax import attention, mixing, sharding, vocab
from fqs_jax import model as model_lib
from fqs_jax.errors import UserError
from fqs_jax.model import ModelConfig, Params
from fqs_jax.rollout import TextCache, marks, rollout, text_attention, thought_keys


@dataclasses.dataclass(frozen=True)
class ThoughtConfig:
    """What a thought is and how it is mixed in; defaults are the published ones.

    Attributes:
      n_ahead: passes up to the first prediction made with the thought; K = n_ahead - 3 sampled tokens.
      n_ahead_talk: A, predictions scored after each thought, teacher-forced.
      rationales: R, thoughts sampled at every position.
      mixing: `linear` mixes hidden states with an unbounded weight (published), `sigmoid` the same
        with the weight squashed, `probability` mixes the two predicted distributions.
      mixing_bias: added before the sigmoid, so that mixing starts at sigmoid(mixing_bias); unused
        by `linear`, which starts at 0.
      embedding_scale: the marks are stored divided by it and used multiplied by it, which makes
        their learning rate under Adam that many times larger.
      temperature: of sampling thought tokens; 0 takes the likeliest.
      reinforce_temperature: at which their log-probabilities are scored.
      masked_ids: vocabulary ids that are never drawn as thought tokens.
    """

    n_ahead: int
    n_ahead_talk: int = 1
    rationales: int = 2
    mixing: str = "linear"
    mixing_bias: float = 0.0
    embedding_scale: float = 100.0
    temperature: float = 1.0
    reinforce_temperature: float = 3.0
    masked_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.n_ahead < 4:
            raise UserError(
                f"n_ahead {self.n_ahead} leaves no sampled token; it must be at least 4"
            )
        if self.n_ahead_talk < 1 or self.rationales < 1:
            raise UserError("n_ahead_talk and rationales must be at least 1")
        if self.mixing not in mixing.KINDS:
            raise UserError(f"mixing {self.mixing!r} is none of {', '.join(mixing.KINDS)}")

    @property
    def num_tokens(self) -> int:
        """K, sampled tokens of a thought."""
        return self.n_ahead - 3

    @property
    def num_slots(self) -> int:
        """M, slots of a block: start, K tokens, end, A - 1 forced tokens."""
        return self.num_tokens + 1 + self.n_ahead_talk


class Scores(NamedTuple):
    """What one packed pass reads off; log-probabilities are float32.

    base_BxT: log p(x_{t+1}) of the plain prediction at t; the last entry is for x_0, wrapped around.
    thought_BxPxRxK: of the sampled tokens, at the REINFORCE temperature.
    talk_BxPxRxA: of x_{t+1+s} under the mixed prediction, s = 0..A-1; wrapped around at the row's end.
    mixing_weight_BxPxRxA: weight of the thought.
    """

    base_BxT: jax.Array
    thought_BxPxRxK: jax.Array
    talk_BxPxRxA: jax.Array
    mixing_weight_BxPxRxA: jax.Array


def init(
    model: ModelConfig,
    thought: ThoughtConfig,
    lm: Params,
    key: jax.Array,
    start_id: int,
    end_id: int,
) -> Params:
    """Fresh marks and talk head, as the published code makes them.

    The marks begin as the embeddings of two vocabulary ids (published: the first sub-token of "---"
    for both) divided by `embedding_scale`; the talk head's last layer is zero, so a `linear`
    thought has no influence at first.
    """
    embedding_VxD = lm["embed"]["embedding"].astype(jnp.float32)
    params = {
        "start": embedding_VxD[start_id] / thought.embedding_scale,
        "end": embedding_VxD[end_id] / thought.embedding_scale,
        "talk_head": mixing.init(model.width, key),
    }
    return jax.tree.map(lambda x: x.astype(model.param_dtype), params)


def sample_thoughts(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Phase one: draw R thoughts of K tokens at every chosen text position, without gradient.

    Args:
      key: for the batch, or one for every block [B, P, R] (`thought_keys`).
      segment_BxT: document of each token, 0 or False for padding; None = one document a row.
      index_BxP: text positions at which to think; None = all T.

    Returns:
      int32 tokens [B, P, R, K] and the entropy (nats) of each draw, same shape.
    """
    params = jax.lax.stop_gradient(params)
    _, (text_key, text_value) = model_lib.text_forward(params["lm"], tokens_BxT, model, segment_BxT)
    text = TextCache(text_key, text_value, segment_BxT)
    tokens, entropy, _ = rollout(params, text, key, model, thought, index_BxP, finish=False)
    return tokens, entropy


def think(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Text pass, then a thought and its mixed prediction at the chosen positions, all cached.

    Returns:
      mixed log-probabilities of the next token [B, P, R, V] float32, base logits [B, P, V] float32,
      thought tokens [B, P, R, K], mixing weights [B, P, R]. Holds V: for reading few positions.
    """
    hidden_BxTxD, (text_key, text_value) = model_lib.text_forward(
        params["lm"], tokens_BxT, model, segment_BxT
    )
    text = TextCache(text_key, text_value, segment_BxT)
    tokens, _, after_BxPxRxD = rollout(params, text, key, model, thought, index_BxP, finish=True)
    assert after_BxPxRxD is not None  # finished
    base_BxPxD = hidden_BxTxD
    if index_BxP is not None:
        base_BxPxD = jnp.take_along_axis(hidden_BxTxD, index_BxP[..., None], axis=1)
    mixed, weight = mixed_log_probs(params, base_BxPxD[:, :, None], after_BxPxRxD, thought)
    return mixed, model_lib.head_logits(params["lm"], base_BxPxD), tokens, weight


def mixed_log_probs(
    params: Params, base: jax.Array, after: jax.Array, thought: ThoughtConfig
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [..., V] of the mixed next-token prediction, and the mixing weight [...].

    Args:
      base: final-norm hidden states without the thought, [..., D], broadcasting against `after`.
      after: final-norm hidden states of the end mark, [..., D].
    """
    score = _score(params, base, after, thought)
    weight = mixing.weight(score, thought.mixing)
    if thought.mixing != "probability":
        mixed = mixing.mix_hidden(base, after, weight)
        return jax.nn.log_softmax(model_lib.head_logits(params["lm"], mixed)), weight
    base_log_p = jax.nn.log_softmax(model_lib.head_logits(params["lm"], base))
    after_log_p = jax.nn.log_softmax(model_lib.head_logits(params["lm"], after))
    return mixing.mix_log_probs(base_log_p, after_log_p, score[..., None]), weight


def sample_and_score(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    segment_BxT: jax.Array | None = None,
    row_B: jax.Array | None = None,
    split_rationales: bool = False,
) -> tuple[Scores, jax.Array]:
    """Both phases, thinking at every position.

    Args:
      row_B: see `thought_keys`.
      split_rationales: let the rationales of a sequence be rows of their own, so that more devices
        than sequences can share the work; each reads the text again. The result is the same.

    Returns:
      The scores, and the entropy (nats) of each draw [B, T, R, K].
    """
    B, T = tokens_BxT.shape
    R = thought.rationales
    keys = thought_keys(key, jnp.broadcast_to(jnp.arange(T), (B, T)), R, row_B)
    if split_rationales:
        keys = jnp.moveaxis(keys, 2, 1).reshape(B * R, T, 1)
        tokens_BxT = sharding.constrain(jnp.repeat(tokens_BxT, R, axis=0), "B T")
        if segment_BxT is not None:
            segment_BxT = sharding.constrain(jnp.repeat(segment_BxT, R, axis=0), "B T")
        thought = dataclasses.replace(thought, rationales=1)
    drawn, entropy = sample_thoughts(params, tokens_BxT, keys, model, thought, segment_BxT)
    scores = score_thoughts(params, tokens_BxT, drawn, model, thought, segment_BxT)
    if not split_rationales:
        return scores, entropy

    def together(x: jax.Array) -> jax.Array:
        """[B R, P, 1, ...] -> [B, P, R, ...]."""
        return jnp.moveaxis(x.reshape(B, R, T, *x.shape[3:]), 1, 2)

    base_BxT = scores.base_BxT.reshape(B, R, T)[:, 0]  # each rationale has the same
    return Scores(base_BxT, *map(together, scores[1:])), together(entropy)


def score_thoughts(
    params: Params,
    tokens_BxT: jax.Array,
    thought_BxPxRxK: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> Scores:
    """Phase two: one differentiable pass over text and all thought blocks.

    Everything is one sequence of T + P * R * M tokens a row for the network's dense layers; attention
    takes it apart into causal text, blocks over shared text, and blocks over themselves.
    """
    lm, c = params["lm"], model
    B, T = tokens_BxT.shape
    P, R, K = thought_BxPxRxK.shape[1:]
    A, M = thought.n_ahead_talk, thought.num_slots
    where_BxP = jnp.broadcast_to(jnp.arange(T), (B, T)) if index_BxP is None else index_BxP
    slot_RM = jnp.tile(jnp.arange(1, M + 1), R)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, _: None) -> tuple[jax.Array, None]:
        text_k, text_v = k[:, :T], v[:, :T]
        text = attention.causal(q[:, :T], text_k, text_v, segment_BxT, c.sliding_window)
        blocks = (B * P * R, M)
        block_q = q[:, T:].reshape(B, P, R * M, *q.shape[-2:])
        over_text = text_attention(block_q, text_k, text_v, index_BxP, slot_RM, segment_BxT, c)
        over_own = attention.own_slots(
            block_q.reshape(*blocks, *q.shape[-2:]),
            k[:, T:].reshape(*blocks, *k.shape[-2:]),
            v[:, T:].reshape(*blocks, *v.shape[-2:]),
            attention.causal_slots(M, c.sliding_window),
        )
        over_own = over_own[0].reshape(block_q.shape), over_own[1].reshape(block_q.shape[:-1])
        merged = attention.merge(over_text, over_own).reshape(B, P * R * M, *q.shape[-2:])
        return jnp.concatenate([text, merged], axis=1), None

    packed = _packed_embeddings(params, tokens_BxT, thought_BxPxRxK, where_BxP, model, thought)
    block_positions = (where_BxP[..., None] + slot_RM).reshape(B, -1)
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(T), (B, T)), block_positions], axis=1)
    hidden, _ = model_lib.run_layers(lm, packed, positions, attend, c)

    base_BxTxD = hidden[:, :T]
    block_BxPxRxMxD = hidden[:, T:].reshape(B, P, R, M, c.width)
    kernel_DxV = model_lib.head_kernel(lm)
    base_BxT = vocab.log_probs(
        base_BxTxD, kernel_DxV, jnp.roll(tokens_BxT, -1, axis=1), chunk=c.vocab_chunk
    )
    thought_log_probs = vocab.log_probs(
        block_BxPxRxMxD[..., :K, :],  # start and the first K - 1 tokens predict the K tokens
        kernel_DxV,
        thought_BxPxRxK,
        chunk=c.vocab_chunk,
        temperature=thought.reinforce_temperature,
        masked_ids=thought.masked_ids,
    )

    after_BxPxRxAxD = block_BxPxRxMxD[..., K + 1 :, :]  # the end mark and the forced tokens
    base_BxPx1xAxD = _ahead(base_BxTxD, where_BxP, A)[:, :, None]
    score_BxPxRxA = _score(params, base_BxPx1xAxD, after_BxPxRxAxD, thought)
    weight_BxPxRxA = mixing.weight(score_BxPxRxA, thought.mixing)
    target_BxPxRxA = jnp.broadcast_to(
        _ahead(tokens_BxT, where_BxP + 1, A)[:, :, None], (B, P, R, A)
    )
    if thought.mixing == "probability":
        after_log_probs = vocab.log_probs(
            after_BxPxRxAxD, kernel_DxV, target_BxPxRxA, chunk=c.vocab_chunk
        )
        base_BxPx1xA = _ahead(base_BxT, where_BxP, A)[:, :, None]
        talk_BxPxRxA = mixing.mix_log_probs(base_BxPx1xA, after_log_probs, score_BxPxRxA)
    else:
        mixed_BxPxRxAxD = mixing.mix_hidden(base_BxPx1xAxD, after_BxPxRxAxD, weight_BxPxRxA)
        talk_BxPxRxA = vocab.log_probs(
            mixed_BxPxRxAxD, kernel_DxV, target_BxPxRxA, chunk=c.vocab_chunk
        )
    return Scores(base_BxT, thought_log_probs, talk_BxPxRxA, weight_BxPxRxA)


def _score(params: Params, base: jax.Array, after: jax.Array, thought: ThoughtConfig) -> jax.Array:
    """The talk head's score with the configured bias."""
    score = mixing.score(params["thought"]["talk_head"], base, after)
    return score if thought.mixing == "linear" else score + thought.mixing_bias


def _packed_embeddings(
    params: Params,
    tokens_BxT: jax.Array,
    thought_BxPxRxK: jax.Array,
    where_BxP: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
) -> jax.Array:
    """Input embeddings of text and blocks, [B, T + P R M, D]."""
    B, P, R, K = thought_BxPxRxK.shape
    T, A, D = tokens_BxT.shape[1], thought.n_ahead_talk, model.width
    forced_BxPxA = _ahead(tokens_BxT, where_BxP + 1, A - 1)
    # One look-up for all, so that the table has one gradient.
    ids = [tokens_BxT, thought_BxPxRxK.reshape(B, -1), forced_BxPxA.reshape(B, -1)]
    found = model_lib.embed(params["lm"], jnp.concatenate(ids, axis=1), model)
    text, drawn, forced = jnp.split(found, [T, T + P * R * K], axis=1)
    start_D, end_D = marks(params, model, thought)
    blocks = [
        jnp.broadcast_to(start_D, (B, P, R, 1, D)),
        drawn.reshape(B, P, R, K, D),
        jnp.broadcast_to(end_D, (B, P, R, 1, D)),
        jnp.broadcast_to(forced.reshape(B, P, 1, A - 1, D), (B, P, R, A - 1, D)),
    ]
    return jnp.concatenate([text, jnp.concatenate(blocks, axis=3).reshape(B, -1, D)], axis=1)


def _ahead(x_BxTx: jax.Array, where_BxP: jax.Array, steps: int) -> jax.Array:
    """x at positions t, t + 1, ... behind each t of `where_BxP`, wrapped around: [B, P, steps, ...]."""
    B, P = where_BxP.shape
    index_BxPA = ((where_BxP[..., None] + jnp.arange(steps)) % x_BxTx.shape[1]).reshape(B, -1)
    more = (1,) * (x_BxTx.ndim - 2)
    found = jnp.take_along_axis(x_BxTx, index_BxPA.reshape(B, -1, *more), axis=1)
    return found.reshape(B, P, steps, *x_BxTx.shape[2:])
