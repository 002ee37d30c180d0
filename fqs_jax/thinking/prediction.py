"""The next-token prediction after a thought."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import talk_head
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.thinking.sampling import TextCache, rollout
from fqs_jax.thinking.scoring import head_score


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
