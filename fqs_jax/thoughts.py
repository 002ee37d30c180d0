"""Thoughts: sample them without gradient, score them in one differentiable pass.

A thought at text position t is a block of M slots behind it: the start mark, K sampled tokens, the
end mark, and A - 1 teacher-forced true tokens x_{t+1}, x_{t+2}, ... Slot m (from 1) has rotary
position t + m; it sees text up to t and its own block up to itself. `n_ahead` counts as in the
published scripts: K = n_ahead - 3 (Quiet-STaR, arXiv 2403.09629; Fast Quiet-STaR, arXiv 2505.17746).

Phase one, `sample_thoughts`: a text pass whose keys and values are shared by all rationales, then K
short cached steps, each one query a position and rationale. Phase two, `score_thoughts`: text and
all blocks through the network at once (blocks.py). The published code instead keeps n_ahead +
n_ahead_talk - 1 passes on one tape; loss and gradients are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax import mixing
from fqs_jax.blocks import Text, mixed_log_probs, read_text, score_blocks
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.positions import Positions
from fqs_jax.rollout import TextCache, rollout, thought_keys
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError

TOKENS = ("sampled", "random", "pause")


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
      tokens: what stands between the marks: tokens `sampled` from the model (published), or one of
        two controls: `random` ones, drawn uniformly; or one learned `pause` embedding, K times
        (Goyal et al., arXiv 2310.02226), shown as id 0.
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
    tokens: str = "sampled"

    def __post_init__(self) -> None:
        if self.n_ahead < 4:
            raise UserError(
                f"n_ahead {self.n_ahead} leaves no sampled token; it must be at least 4"
            )
        if self.n_ahead_talk < 1 or self.rationales < 1:
            raise UserError("n_ahead_talk and rationales must be at least 1")
        if self.mixing not in mixing.KINDS:
            raise UserError(f"mixing {self.mixing!r} is none of {', '.join(mixing.KINDS)}")
        if self.tokens not in TOKENS:
            raise UserError(f"tokens {self.tokens!r} is none of {', '.join(TOKENS)}")

    @property
    def num_tokens(self) -> int:
        """K, tokens of a thought between the marks."""
        return self.n_ahead - 3

    @property
    def head_reads(self) -> int:
        """How often the output head is read to think up a thought; only sampled tokens need it."""
        return self.num_tokens if self.tokens == "sampled" else 0

    @property
    def num_slots(self) -> int:
        """M, slots of a block: start, K tokens, end, A - 1 forced tokens."""
        return self.num_tokens + 1 + self.n_ahead_talk


class Scores(NamedTuple):
    """What one packed pass reads off.

    base_BxT: log p(x_{t+1}) of the plain prediction at t, float32; the last entry is for x_0, wrapped
    around. The others: see `blocks.BlockScores`.
    """

    base_BxT: jax.Array
    thought_BxPxRxK: jax.Array
    talk_BxPxRxA: jax.Array
    mixing_weight_BxPxRxA: jax.Array
    alone_BxPxRxA: jax.Array | None = None


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
    thought has no influence at first. A learned pause begins as the start mark does.
    """
    embedding_VxD = lm["embed"]["embedding"].astype(jnp.float32)
    params = {
        "start": embedding_VxD[start_id] / thought.embedding_scale,
        "end": embedding_VxD[end_id] / thought.embedding_scale,
        "talk_head": mixing.init(model.width, key),
    }
    if thought.tokens == "pause":
        params["pause"] = params["start"]
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
    _, (text_key, text_value) = decoder.text_forward(params["lm"], tokens_BxT, model, segment_BxT)
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

    Args: as of `sample_thoughts`.

    Returns:
      mixed log-probabilities of the next token [B, P, R, V] float32, base logits [B, P, V] float32,
      thought tokens [B, P, R, K], mixing weights [B, P, R]. Holds V: for reading few positions.
    """
    hidden_BxTxD, (text_key, text_value) = decoder.text_forward(
        params["lm"], tokens_BxT, model, segment_BxT
    )
    text = TextCache(text_key, text_value, segment_BxT)
    tokens, _, after_BxPxRxD = rollout(params, text, key, model, thought, index_BxP, finish=True)
    assert after_BxPxRxD is not None  # finished
    base_BxPxD = hidden_BxTxD
    if index_BxP is not None:
        base_BxPxD = jnp.take_along_axis(hidden_BxTxD, index_BxP[..., None], axis=1)
    mixed, weight = mixed_log_probs(params, base_BxPxD[:, :, None], after_BxPxRxD, thought)
    return mixed, decoder.head_logits(params["lm"], base_BxPxD), tokens, weight


def predict_at(
    params: Params,
    tokens_BxT: jax.Array,
    index_BxP: jax.Array,
    keys_BxPxR: jax.Array | None,
    model: ModelConfig,
    thought: ThoughtConfig | None,
    segment_BxT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Log-probabilities of the next token at few text positions, float32: plain, and after thoughts.

    Args:
      keys_BxPxR: `thought_keys`; None without thoughts.

    Returns:
      [B, P, V], and [B, P, R, V] or None where the model does not think.
    """
    if thought is None:
        hidden_BxTxD, _ = decoder.text_forward(params["lm"], tokens_BxT, model, segment_BxT)
        hidden_BxPxD = jnp.take_along_axis(hidden_BxTxD, index_BxP[..., None], axis=1)
        return jax.nn.log_softmax(decoder.head_logits(params["lm"], hidden_BxPxD)), None
    assert keys_BxPxR is not None
    mixed, logits_BxPxV, _, _ = think(
        params, tokens_BxT, keys_BxPxR, model, thought, segment_BxT, index_BxP
    )
    return jax.nn.log_softmax(logits_BxPxV), mixed


class Thinking(NamedTuple):
    """Rows of a batch, their text pass, and the thoughts sampled behind it.

    Rows are sequences; or, where rationales are split, rationales of sequences, with R = 1. `together`
    undoes that.

    index_BxP: text positions of the thoughts; None = all.
    """

    tokens_BxT: jax.Array
    segment_BxT: jax.Array | None
    text: Text
    index_BxP: jax.Array | None
    thought_BxPxRxK: jax.Array
    entropy_BxPxRxK: jax.Array


# Where to think, from the text's final-norm hidden states [B, T, D].
Choose = Callable[[jax.Array], Positions]


def read_and_think(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    segment_BxT: jax.Array | None = None,
    row_B: jax.Array | None = None,
    split_rationales: bool = False,
    choose: Choose | None = None,
) -> tuple[Thinking, Positions | None]:
    """The differentiable text pass, and phase one behind it; see `sample_and_score`."""
    B, T = tokens_BxT.shape
    R = thought.rationales
    if split_rationales:
        tokens_BxT = sharding.constrain(jnp.repeat(tokens_BxT, R, axis=0), "B T")
        if segment_BxT is not None:
            segment_BxT = sharding.constrain(jnp.repeat(segment_BxT, R, axis=0), "B T")
        thought = dataclasses.replace(thought, rationales=1)
    text = read_text(params, tokens_BxT, model, segment_BxT)

    where, index_BxP = None, None
    where_BxP = jnp.broadcast_to(jnp.arange(T), (B, T))
    if choose is not None:
        # All rationales of a sequence think at the same positions.
        hidden_BxTxD = jax.lax.stop_gradient(text.hidden_BxTxD)
        where = choose(hidden_BxTxD.reshape(B, -1, T, model.width)[:, 0])
        where_BxP = index_BxP = where.index_BxP
    keys = thought_keys(key, where_BxP, R, row_B)
    if split_rationales:
        keys = jnp.moveaxis(keys, 2, 1).reshape(B * R, -1, 1)
        if index_BxP is not None:
            index_BxP = sharding.constrain(jnp.repeat(index_BxP, R, axis=0), "B .")

    frozen = jax.lax.stop_gradient((params, text.key_LxBxTxGxH, text.value_LxBxTxGxH))
    cache = TextCache(*frozen[1:], segment_BxT)
    drawn, entropy, _ = rollout(frozen[0], cache, keys, model, thought, index_BxP, finish=False)
    return Thinking(tokens_BxT, segment_BxT, text, index_BxP, drawn, entropy), where


def together(x: jax.Array, rationales: int) -> jax.Array:
    """[B', P, R', ...] of rows that may be single rationales -> [B, P, R, ...]."""
    split = rationales // x.shape[2]
    x = jnp.moveaxis(x.reshape(-1, split, *x.shape[1:]), 1, 2)
    return x.reshape(*x.shape[:2], rationales, *x.shape[4:])


def sample_and_score(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    segment_BxT: jax.Array | None = None,
    row_B: jax.Array | None = None,
    split_rationales: bool = False,
    choose: Choose | None = None,
) -> tuple[Scores, jax.Array, Positions | None]:
    """Both phases.

    Args:
      row_B: see `thought_keys`.
      choose: where to think; None = everywhere.
      split_rationales: let the rationales of a sequence be rows of their own, so that more devices
        than sequences can share the work; each reads the text again. The result is the same.

    Returns:
      The scores, the entropy (nats) of each draw [B, P, R, K], and where was thought.
    """
    B, T = tokens_BxT.shape
    R = thought.rationales
    thinking, where = read_and_think(
        params, tokens_BxT, key, model, thought, segment_BxT, row_B, split_rationales, choose
    )
    blocks = score_blocks(
        params,
        thinking.text,
        thinking.tokens_BxT,
        thinking.thought_BxPxRxK,
        model,
        thought,
        thinking.segment_BxT,
        thinking.index_BxP,
    )
    base_BxT = thinking.text.log_prob_BxT.reshape(B, -1, T)[:, 0]
    scores = Scores(base_BxT, *jax.tree.map(lambda x: together(x, R), blocks))
    return scores, together(thinking.entropy_BxPxRxK, R), where


def score_thoughts(
    params: Params,
    tokens_BxT: jax.Array,
    thought_BxPxRxK: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> Scores:
    """Phase two: one differentiable pass over the text and one over all thought blocks behind it."""
    text = read_text(params, tokens_BxT, model, segment_BxT)
    blocks = score_blocks(
        params, text, tokens_BxT, thought_BxPxRxK, model, thought, segment_BxT, index_BxP
    )
    return Scores(text.log_prob_BxT, *blocks)
