"""The next-token prediction after a thought, for reading few positions: it holds the vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax.model import decoder
from fqs_jax.model.decoder import KeysValues, Params
from fqs_jax.thinking import talk_head
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.sampling import rollout
from fqs_jax.thinking.scoring import head_score


class NextToken(NamedTuple):
    """The prediction after each of R thoughts at P positions.

    Attributes:
      log_prob_BxPxRxV: mixed log-probabilities of the next token, float32.
      thought_BxPxRxK: the thoughts' tokens, int32.
      weight_BxPxR: mixing weights, float32.
    """

    log_prob_BxPxRxV: jax.Array
    thought_BxPxRxK: jax.Array
    weight_BxPxR: jax.Array


def after_thoughts(
    params: Params,
    cache: KeysValues,
    base_BxPxD: jax.Array,
    key: jax.Array,
    thinker: Thinker,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> NextToken:
    """Think behind a text and predict the next token.

    Args:
      base_BxPxD: final-norm hidden states of the text at the positions of the thoughts.
      cache, key, segment_BxT, index_BxP: see `sampling.sample`.
    """
    thoughts, after_BxPxRxD = rollout(params, cache, key, thinker, segment_BxT, index_BxP)
    mixed = mixed_log_probs(params, base_BxPxD[:, :, None], after_BxPxRxD, thinker.thought)
    return NextToken(mixed[0], thoughts.tokens_BxPxRxK, mixed[1])


def mixed_log_probs(
    params: Params, base: jax.Array, after: jax.Array, thought: ThoughtConfig
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [..., V] of the mixed next-token prediction, and the mixing weight [...].

    Args:
      base: final-norm hidden states without the thought, [..., D], broadcasting against `after`.
      after: final-norm hidden states of the end mark, [..., D].
    """
    score = head_score(params, base, after, thought)
    weight = talk_head.weight(score, thought.mixing)
    if thought.mixing != "probability":
        mixed = talk_head.mix_hidden(base, after, weight)
        return jax.nn.log_softmax(decoder.head_logits(params["lm"], mixed)), weight
    base_log_p = jax.nn.log_softmax(decoder.head_logits(params["lm"], base))
    after_log_p = jax.nn.log_softmax(decoder.head_logits(params["lm"], after))
    return talk_head.mix_log_probs(base_log_p, after_log_p, score[..., None]), weight


def think(
    params: Params,
    tokens_BxT: jax.Array,
    key: jax.Array,
    thinker: Thinker,
    segment_BxT: jax.Array | None = None,
    index_BxP: jax.Array | None = None,
) -> tuple[NextToken, jax.Array]:
    """Read a text, then predict the next token after thoughts at the chosen positions.

    Args: as for `sampling.sample`.

    Returns:
      The prediction, and the logits of the plain one, float32 [B, P, V].
    """
    hidden_BxTxD, cache = decoder.text_forward(params["lm"], tokens_BxT, thinker.model, segment_BxT)
    base_BxPxD = hidden_BxTxD
    if index_BxP is not None:
        base_BxPxD = jnp.take_along_axis(hidden_BxTxD, index_BxP[..., None], axis=1)
    following = after_thoughts(params, cache, base_BxPxD, key, thinker, segment_BxT, index_BxP)
    return following, decoder.head_logits(params["lm"], base_BxPxD)
