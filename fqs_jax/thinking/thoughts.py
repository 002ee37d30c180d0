"""Thoughts: sample them without gradient, score them in one differentiable pass.

A thought at text position t is a block of M slots after it: the start mark, K sampled tokens, the
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
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import sharding
from fqs_jax.thinking import sampling
from fqs_jax.thinking.config import Thinker
from fqs_jax.thinking.keys import thought_keys
from fqs_jax.thinking.positions import Positions
from fqs_jax.thinking.sampling import Thoughts
from fqs_jax.thinking.scoring import BlockScores, Text, read_text, score_blocks


class Scores(NamedTuple):
    """Scores of a text and of the thought blocks behind it.

    Attributes:
      base_BxT: log p(x_{t+1}) of the plain prediction at t, float32; the last entry is for x_0,
        wrapped around.
    """

    base_BxT: jax.Array
    blocks: BlockScores


def sample_thoughts(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    thinker: Thinker,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> Thoughts:
    """Phase one: draw R thoughts of K tokens at every chosen text position, without gradient.

    Args: as for `sampling.sample`.
    """
    params = jax.lax.stop_gradient(params)
    _, cache = decoder.text_forward(params["lm"], tokens_BxT, thinker.model, segment_BxT)
    return sampling.sample(params, cache, key, thinker, segment_BxT, index_BxP)


class Thinking(NamedTuple):
    """Rows of a batch, their text pass, and the thoughts sampled behind it.

    Rows are sequences; or, where rationales are split, rationales of sequences, with R = 1. `together`
    undoes that.

    Attributes:
      index_BxP: text positions of the thoughts; None = all.
    """

    text: Text
    index_BxP: jax.Array | None
    thoughts: Thoughts


# Chooses where to think, from the text's final-norm hidden states [B, T, D].
Choose = Callable[[jax.Array], Positions]


def read_and_think(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    thinker: Thinker,
    segment_BxT: jax.Array | None = None,
    row_B: jax.Array | None = None,
    split_rationales: bool = False,
    choose: Choose | None = None,
    packed: bool = False,
) -> tuple[Thinking, Positions | None]:
    """The differentiable text pass, and phase one behind it.

    Args:
      segment_BxT, packed: see `decoder.text_forward`. row_B: see `thought_keys`.
      split_rationales: make the rationales of a sequence rows of their own, so that more devices
        than sequences can share the work; each reads the text again. The result is the same.
      choose: chooses the positions; None = all.

    Returns:
      What was read and thought, and the chosen positions; None for all.
    """
    B, T = tokens_BxT.shape
    R = thinker.thought.rationales
    if split_rationales:
        tokens_BxT = _repeated(tokens_BxT, R)
        segment_BxT = None if segment_BxT is None else _repeated(segment_BxT, R)
        thought = dataclasses.replace(thinker.thought, rationales=1)
        thinker = dataclasses.replace(thinker, thought=thought)
    text = read_text(params, tokens_BxT, thinker.model, segment_BxT, packed)

    positions, index_BxP = None, None
    position_BxP = jnp.broadcast_to(jnp.arange(T), (B, T))
    if choose is not None:
        # All rationales of a sequence think at the same positions.
        hidden_BxTxD = jax.lax.stop_gradient(text.hidden_BxTxD)
        positions = choose(hidden_BxTxD.reshape(B, -1, T, thinker.model.width)[:, 0])
        position_BxP = index_BxP = positions.index_BxP
    keys = thought_keys(key, position_BxP, R, row_B)
    if split_rationales:
        keys = jnp.moveaxis(keys, 2, 1).reshape(B * R, -1, 1)
        index_BxP = None if index_BxP is None else _repeated(index_BxP, R, "B .")

    params, cache = jax.lax.stop_gradient((params, text.cache))
    thoughts = sampling.sample(params, cache, keys, thinker, segment_BxT, index_BxP)
    return Thinking(text, index_BxP, thoughts), positions


def _repeated(x_BxTx: jax.Array, rationales: int, axes: str = "B T") -> jax.Array:
    """Each row once for every rationale, [B * R, T, ...]."""
    return sharding.constrain(jnp.repeat(x_BxTx, rationales, axis=0), axes)


def together(x: jax.Array, rationales: int) -> jax.Array:
    """[B', P, R', ...] of rows that may be single rationales -> [B, P, R, ...]."""
    split = rationales // x.shape[2]
    x = jnp.moveaxis(x.reshape(-1, split, *x.shape[1:]), 1, 2)
    return x.reshape(*x.shape[:2], rationales, *x.shape[4:])


def sample_and_score(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    thinker: Thinker,
    segment_BxT: jax.Array | None = None,
    row_B: jax.Array | None = None,
    packed: bool = False,
) -> Scores:
    """Both phases; see `read_and_think`."""
    thinking, _ = read_and_think(
        params, tokens_BxT, key, thinker, segment_BxT, row_B, packed=packed
    )
    drawn_BxTxRxK = thinking.thoughts.tokens_BxPxRxK
    blocks = score_blocks(params, thinking.text, drawn_BxTxRxK, thinker)
    return Scores(thinking.text.log_prob_BxT, blocks)


def score_thoughts(
    params: Params,
    tokens_BxT: jax.Array,
    thought_BxPxRxK: jax.Array,
    thinker: Thinker,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> Scores:
    """Phase two: one differentiable pass over the text and one over all thought blocks behind it."""
    text = read_text(params, tokens_BxT, thinker.model, segment_BxT)
    return Scores(
        text.log_prob_BxT, score_blocks(params, text, thought_BxPxRxK, thinker, index_BxP)
    )
