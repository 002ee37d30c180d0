"""Thoughts: sample them without gradient, score them in one differentiable pass.

A thought at text position t is a block of M slots behind it: the start mark, K sampled tokens, the
end mark, and A - 1 teacher-forced true tokens x_{t+1}, x_{t+2}, ... Slot m (from 1) has rotary
position t + m; it sees text up to t and its own block up to itself. `n_ahead` counts as in the
published scripts: K = n_ahead - 3 (Quiet-STaR, arXiv 2403.09629; Fast Quiet-STaR, arXiv 2505.17746).

Phase one, `sample_thoughts`: a text pass whose keys and values are shared by all rationales, then K
short cached steps, each one query a position and rationale. Phase two, `score_thoughts`: text and
all blocks through the network at once (thinking/scoring.py). The published code instead keeps n_ahead +
n_ahead_talk - 1 passes on one tape; loss and gradients are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import sharding
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.thinking.keys import thought_keys
from fqs_jax.thinking.positions import Positions
from fqs_jax.thinking.sampling import TextCache, rollout
from fqs_jax.thinking.scoring import Text, read_text, score_blocks


class Scores(NamedTuple):
    """What one packed pass reads off.

    base_BxT: log p(x_{t+1}) of the plain prediction at t, float32; the last entry is for x_0, wrapped
    around. The others: see `scoring.BlockScores`.
    """

    base_BxT: jax.Array
    thought_BxPxRxK: jax.Array
    talk_BxPxRxA: jax.Array
    mixing_weight_BxPxRxA: jax.Array
    alone_BxPxRxA: jax.Array | None = None


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
