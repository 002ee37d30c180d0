"""Cached generation against recomputing everything, and the choice of a token."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.inference import decoding
from fqs_jax.model.config import ModelConfig
from fqs_jax.thinking.config import ThoughtConfig
from tests import reference
from tests.tiny_models import MASKED_IDS, VOCAB, model_config, random_params, texts

prefill = jax.jit(decoding.prefill, static_argnames=("model", "room"))
extend = jax.jit(decoding.extend, static_argnames="model")
next_log_probs = jax.jit(decoding.next_log_probs, static_argnames=("model", "thought"))

LENGTHS = (5, 2, 1)
STEPS = 3


def cursors(model: ModelConfig, params: Any, new: np.ndarray) -> Any:
    """The positions of generation before each of the new tokens [B, STEPS], and behind the last."""
    tokens, _ = texts(LENGTHS, max(LENGTHS))
    cursor = prefill(params, tokens, jnp.array(LENGTHS), model=model, room=STEPS)
    rows = [list(map(int, row[:length])) for row, length in zip(tokens, LENGTHS, strict=True)]
    yield cursor, rows
    for step in range(STEPS):
        cursor = extend(params, cursor, jnp.asarray(new[:, step], jnp.int32), model=model)
        rows = [[*row, int(token)] for row, token in zip(rows, new[:, step], strict=True)]
        yield cursor, rows


@pytest.mark.parametrize("window", [None, 3])
def test_cached_steps_equal_full_passes(window: int | None) -> None:
    """Prompts of different lengths, until the caches are full; with and without thoughts.

    The window is one that a prompt outgrows, and the slots of a thought.
    """
    model = model_config(sliding_window=window)
    thought = ThoughtConfig(n_ahead=6, rationales=1, masked_ids=MASKED_IDS)
    params = random_params(model)
    new = np.random.default_rng(1).integers(0, VOCAB, (3, STEPS))
    for step, (cursor, rows) in enumerate(cursors(model, params, new)):
        np.testing.assert_array_equal(cursor.length_B, [length + step for length in LENGTHS])
        plain, none, no_weight = next_log_probs(
            params, cursor, jax.random.key(step), model=model, thought=None
        )
        assert none.shape == (3, 0) and not no_weight.any()
        key = jax.random.key(step)
        mixed, drawn, weight = next_log_probs(params, cursor, key, model=model, thought=thought)
        assert not np.isin(drawn, MASKED_IDS).any()
        np.testing.assert_allclose(np.exp(mixed).sum(-1), 1, rtol=1e-5)
        for b, row in enumerate(rows):
            hidden_TxD = reference.text_hidden(params["lm"], model, row)
            expected = reference.log_softmax(reference.logits(params["lm"], hidden_TxD[-1]))
            np.testing.assert_allclose(plain[b], expected, rtol=1e-4, atol=2e-5)

            t, real = len(row) - 1, np.ones(len(row), bool)
            out = reference.rollout(
                params, model, np.array(row), real, t, drawn[b], 1, masked_ids=MASKED_IDS
            )
            expected = reference.log_softmax(out.mixed_logits_AxV[0])
            np.testing.assert_allclose(mixed[b], expected, rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(weight[b], out.mixing_weight_A[0], rtol=1e-4, atol=1e-5)
            # The draws are those of this row and position, as in training.
            noise = [reference.gumbel_noise(key, (b, t, 0, k), VOCAB) for k in range(3)]
            chosen = np.argmax(out.thought_logits_KxV + np.array(noise), axis=-1)
            np.testing.assert_array_equal(drawn[b], chosen)


def test_padding_of_a_prompt_is_never_seen() -> None:
    model = model_config()
    params = random_params(model)
    tokens, _ = texts(LENGTHS, 5)
    other = np.array(tokens)
    for b, length in enumerate(LENGTHS):
        other[b, length:] = (other[b, length:] + 1) % VOCAB
    results = []
    for prompt in (tokens, jnp.asarray(other)):
        cursor = prefill(params, prompt, jnp.array(LENGTHS), model=model, room=STEPS)
        cursor = extend(params, cursor, jnp.array([1, 2, 3]), model=model)
        results.append(cursor.hidden_BxD)
    np.testing.assert_array_equal(*results)


# The choice of a token --------------------


@given(
    st.lists(st.floats(-4, 4), min_size=6, max_size=6, unique=True),
    st.sampled_from([0.05, 0.3, 0.7, 0.9, 0.999]),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_nucleus(scores: list[float], top_p: float, temperature: float) -> None:
    """Only tokens of the smallest likeliest set with top_p of the probability, in proportion."""
    log_p = jax.nn.log_softmax(jnp.array(scores))
    rows = jnp.broadcast_to(log_p, (2000, 6))
    picked = np.asarray(decoding.pick(rows, jax.random.key(0), temperature, top_p))
    p = np.exp(reference.log_softmax(np.asarray(log_p, np.float64) / temperature))
    order = np.argsort(-p)
    size = int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-6) + 1)
    nucleus = order[:size]
    close_call = abs(np.cumsum(p[order]) - top_p).min() < 1e-5 or len(np.unique(np.float32(p))) < 6
    if not close_call:
        assert np.isin(picked, nucleus).all()
        share = p[nucleus] / p[nucleus].sum()
        count = np.bincount(picked, minlength=6)[nucleus]
        deviation = np.sqrt(2000 * share * (1 - share))
        assert (np.abs(count - 2000 * share) <= 5 * deviation + 1).all()


def test_temperature_0_takes_the_likeliest() -> None:
    log_p = jax.nn.log_softmax(jnp.array([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]]))
    for seed in range(5):
        picked = decoding.pick(log_p, jax.random.key(seed), 0.0, 0.1)
        np.testing.assert_array_equal(picked, [1, 0])
        assert picked.dtype == jnp.int32


def test_a_small_nucleus_is_the_likeliest_token() -> None:
    log_p = jax.nn.log_softmax(jnp.zeros((50, 4)).at[:, 2].set(0.1))
    picked = decoding.pick(log_p, jax.random.key(0), 1.0, 0.01)
    np.testing.assert_array_equal(picked, 2)


def test_impossible_tokens_stay_impossible() -> None:
    """Logits of -inf, such as those of vocabulary rows beyond the tokenizer's, are never drawn."""
    log_p = jnp.full((400, 5), -jnp.inf).at[:, 1:3].set(np.log(0.5))
    for top_p in (1.0, 0.9):
        picked = np.asarray(decoding.pick(log_p, jax.random.key(1), 1.5, top_p))
        assert set(picked.tolist()) == {1, 2}
