"""Cached generation, with or without a thought before every token.

A plain token costs one cached step. A token after a thought costs n_ahead of them: the text token, the
start mark, K sampled tokens and the end mark. Thoughts see the text cache and are dropped afterwards, so
the cache is that of an ordinary model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax.model import attention_xla, decoder, vocab
from fqs_jax.model.config import Layer, ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import prediction
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.keys import thought_keys


class Cursor(NamedTuple):
    """The state of generation: the cache of the text so far and the last hidden state.

    key, value: cached keys and values [L, B, Tmax, G, H]. length_B: int32, tokens in each row's cache.
    hidden_BxD: final-norm hidden state of the last of these tokens.
    """

    key: jax.Array
    value: jax.Array
    length_B: jax.Array
    hidden_BxD: jax.Array


class Choice(NamedTuple):
    """The next token of every row, and the thought before it.

    token_B: int32. thought_BxK: int32, K = 0 without thoughts. weight_B: float32, the thought's mixing
    weight. log_prob_B: float32, of the token; gain_B: float32, nats by which the thought made it likelier;
    both None if not asked for.
    """

    token_B: jax.Array
    thought_BxK: jax.Array
    weight_B: jax.Array
    log_prob_B: jax.Array | None
    gain_B: jax.Array | None


def prefill(
    params: Params, tokens_BxT: jax.Array, length_B: jax.Array, model: ModelConfig, room: int
) -> Cursor:
    """Read prompts, padded on the right to T, into caches with room for `room` more tokens."""
    hidden_BxTxD, (key, value) = decoder.text_forward(params["lm"], tokens_BxT, model)
    # Slots beyond a row's length hold padding. No query sees beyond its own index, and each slot is
    # overwritten before the index reaches it.
    padding = [(0, 0), (0, 0), (0, room), (0, 0), (0, 0)]
    last_BxD = jnp.take_along_axis(hidden_BxTxD, (length_B - 1)[:, None, None], axis=1)[:, 0]
    return Cursor(jnp.pad(key, padding), jnp.pad(value, padding), length_B, last_BxD)


def extend(params: Params, cursor: Cursor, token_B: jax.Array, model: ModelConfig) -> Cursor:
    """Append one token to every row: one cached step.

    Donate the cursor to avoid a copy of the caches: layers return only the new key and value, which are
    then written into the caches.
    """
    hidden_Bx1xD, new = through_layers(
        params["lm"]["layers"],
        decoder.embed(params["lm"], token_B[:, None], model),
        (cursor.key, cursor.value),
        cursor.length_B,
        model,
        model.period,
    )
    hidden_Bx1xD = decoder.final_norm(params["lm"], hidden_Bx1xD, model)
    rows_B = jnp.arange(token_B.shape[0])
    key, value = (
        cache.at[:, rows_B, cursor.length_B].set(written)
        for cache, written in zip((cursor.key, cursor.value), new, strict=True)
    )
    return Cursor(key, value, cursor.length_B + 1, hidden_Bx1xD[:, 0])


def through_layers(
    layers: Params,
    hidden_Bx1xD: jax.Array,
    caches: decoder.KeysValues,
    length_B: jax.Array,
    model: ModelConfig,
    period: tuple[Layer, ...],
) -> tuple[jax.Array, decoder.KeysValues]:
    """One token of every row through successive layers.

    Args:
      layers: stacked parameters of l layers, of the kinds `period`, repeated.
      caches: their keys and values [l, B, Tmax, G, H], of which length_B tokens a row are filled.

    Returns:
      Hidden states [B, 1, D] behind the last of these layers, and the token's keys and values, each
      [l, B, G, H].
    """
    index_Bx1 = length_B[:, None]
    one = jnp.ones(1, jnp.int32)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, layer: Any, window: int | None
    ) -> tuple[jax.Array, Any]:
        before = attention_xla.indexed_text(
            q[:, :, None], layer[0], layer[1], index_Bx1 - 1, one, None, window
        )
        output, lse = attention_xla.own_slots(q, k, v, jnp.ones((1, 1), bool))
        merged = attention_xla.merge(before, (output[:, :, None], lse[:, :, None]))
        return merged[:, :, 0], (k[:, 0], v[:, 0])

    return decoder.run_blocks(layers, hidden_Bx1xD, index_Bx1, attend, model, caches, period)


def next_log_probs(
    params: Params,
    cursor: Cursor,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig | None,
    row_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities of the next token, after a thought if `thought` is given.

    Args:
      row_B: int32, the number of each row among all prompts, which its draws depend on; None = 0, 1, ...

    Returns:
      [B, V] float32, the thought's tokens [B, K] and its mixing weight [B] (K = 0 without thoughts).
    """
    B = cursor.length_B.shape[0]
    if thought is None:
        log_probs = jax.nn.log_softmax(decoder.head_logits(params["lm"], cursor.hidden_BxD))
        return log_probs, jnp.zeros((B, 0), jnp.int32), jnp.zeros(B)
    index_Bx1 = cursor.length_B[:, None] - 1
    following = prediction.after_thoughts(
        params,
        (cursor.key, cursor.value),
        cursor.hidden_BxD[:, None],
        thought_keys(key, index_Bx1, thought.rationales, row_B),
        Thinker(model, thought),
        index_BxP=index_Bx1,
    )
    log_prob, drawn, weight = (x[:, 0, 0] for x in following)
    return log_prob, drawn, weight


def choose(
    params: Params,
    cursor: Cursor,
    key: jax.Array,
    step: jax.Array,
    *,
    model: ModelConfig,
    thought: ThoughtConfig | None,
    temperature: float,
    top_p: float,
    allowed: int,
    first: jax.Array | int = 0,
    scored: bool = False,
    forced: jax.Array | int | None = None,
    only: jax.Array | None = None,
) -> Choice:
    """The next token of every row.

    Args:
      key: of all sampling, folded with the number of the `step` here.
      allowed: ids from this one on are never chosen: a padded vocabulary has ids that no text has.
      first: number of the first row among all prompts.
      scored: compute log-probabilities and gains too, for which the head runs once more.
      forced: id that every row gets instead of the token it would choose; None or -1 = it chooses.
      only: int32 ids that can be chosen; probabilities are then those among them. None = all.
    """
    key = jax.random.fold_in(key, step)
    row_B = first + jnp.arange(cursor.length_B.shape[0])
    log_probs, drawn, weight = next_log_probs(params, cursor, key, model, thought, row_B)
    log_probs = jnp.where(jnp.arange(log_probs.shape[-1]) < allowed, log_probs, -jnp.inf)
    log_probs = _among(log_probs, only)
    token_B = pick(log_probs, jax.random.fold_in(key, 1), temperature, top_p, row_B)
    if forced is not None:
        token_B = jnp.where(jnp.asarray(forced) >= 0, forced, token_B)
    if not scored:
        return Choice(token_B, drawn, weight, None, None)
    plain, _, _ = next_log_probs(params, cursor, key, model, None)
    log_prob_B, plain_B = (
        jnp.take_along_axis(table, token_B[:, None], axis=-1)[:, 0]
        for table in (log_probs, _among(plain, only))
    )
    return Choice(token_B, drawn, weight, log_prob_B, log_prob_B - plain_B)


def _among(log_probs_BxV: jax.Array, only: jax.Array | None) -> jax.Array:
    """Log-probabilities among some ids; -inf for all others."""
    if only is None:
        return log_probs_BxV
    is_one_V = jnp.zeros(log_probs_BxV.shape[-1], bool).at[only].set(True)
    return jax.nn.log_softmax(jnp.where(is_one_V, log_probs_BxV, -jnp.inf))


def pick(
    log_probs_BxV: jax.Array,
    key: jax.Array,
    temperature: float,
    top_p: float,
    row_B: jax.Array | None = None,
) -> jax.Array:
    """Next tokens int32 [B]: the likeliest at temperature 0, else sampled from the top_p nucleus.

    The nucleus is the smallest set of tokens that holds at least `top_p` of the probability.

    Args:
      row_B: see `next_log_probs`.
    """
    if temperature == 0:
        return vocab.argmax(log_probs_BxV)
    logits = log_probs_BxV / temperature
    if top_p < 1:
        ordered = jnp.sort(jax.nn.softmax(logits), axis=-1)[:, ::-1]
        before = jnp.cumsum(ordered, -1) - ordered  # probability of all likelier tokens
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), -1, keepdims=True)
        logits = jnp.where(jax.nn.softmax(logits) >= least, logits, -jnp.inf)
    row_B = jnp.arange(log_probs_BxV.shape[0]) if row_B is None else row_B
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)
    return jax.vmap(jax.random.categorical)(keys_B, logits).astype(jnp.int32)
