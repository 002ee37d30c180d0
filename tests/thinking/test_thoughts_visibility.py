"""The inputs of a thought: the text and the slots that it sees, and the distribution it is drawn from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from tests import reference
from tests.tiny_models import MASKED_IDS, VOCAB, flat, model_config, random_params, texts

sample_thoughts = jax.jit(thoughts.sample_thoughts, static_argnames="thinker")
score_thoughts = jax.jit(thoughts.score_thoughts, static_argnames="thinker")

TALK = 2
SEEING = ThoughtConfig(n_ahead=5, n_ahead_talk=TALK, rationales=2, masked_ids=MASKED_IDS)


def changes(model: ModelConfig, tokens: Any, drawn: Any, mask: Any = None) -> list[np.ndarray]:
    """Score rows of which the first is the original: which scores of the others differ from it."""
    rows = len(tokens) - 1
    tokens, drawn = (np.resize(x, (7, *x.shape[1:])) for x in (tokens, drawn))  # compiled once
    mask = jnp.array(np.ones(tokens.shape, bool) if mask is None else mask.repeat(7, axis=0))
    scores = score_thoughts(
        random_params(model), tokens, drawn, thinker=Thinker(model, SEEING), segment_BxT=mask
    )
    differences = [
        np.abs(np.asarray(x)[1 : rows + 1] - np.asarray(x)[:1]) for x in jax.tree.leaves(scores)[:3]
    ]
    # Nothing in between: equal but for rounding, or plainly different.
    assert not any(((d > 2e-5) & (d < 1e-4)).any() for d in differences)
    return [d > 5e-5 for d in differences]


@pytest.mark.parametrize("window", [None, 3])
def test_which_text_a_thought_sees(window: int | None) -> None:
    """Every text token is changed in turn; with one layer where a window would be relayed."""
    model = model_config(sliding_window=window, num_layers=1 if window else 2)
    tokens, _ = texts((6,), 6)
    T, (K, R) = 6, (SEEING.num_tokens, SEEING.rationales)
    rows = np.repeat(np.asarray(tokens), T + 1, axis=0)
    rows[np.arange(1, T + 1), np.arange(T)] = (rows[0] + 1) % VOCAB  # row 1 + j: x_j is another
    drawn = np.random.default_rng(0).integers(5, 17, (1, T, R, K)).repeat(T + 1, axis=0)
    base, thought, talk = changes(model, rows, drawn)

    width = window or T + 99
    for j, i in np.ndindex(T, T):
        text = j <= i and i - j < width
        if i + 1 < T:
            assert base[j, i] == (text or j == i + 1)  # the target is x_{i+1}
        for k in range(K):  # proposed by slot k + 1
            assert (thought[j, i, :, k] == (j <= i and i + k + 1 - j < width)).all()
        for s in range(min(TALK, T - 1 - i)):
            block = j <= i and i + K + 2 + s - j < width  # slot K + 2 + s is the one read
            forced = i < j <= i + s
            plain = j <= i + s and i + s - j < width  # the text's own state at i + s
            target = j == i + 1 + s
            assert (talk[j, i, :, s] == (block or forced or plain or target)).all()


def test_padding_is_seen_by_nobody() -> None:
    model = model_config()
    tokens, mask = texts((4,), 6)
    rows = np.concatenate([tokens, np.where(mask, tokens, (tokens + 1) % VOCAB)])
    drawn = np.random.default_rng(0).integers(5, 17, (1, 6, 2, SEEING.num_tokens))
    base, thought, talk = changes(model, rows, drawn.repeat(2, axis=0), mask)
    assert not base[0, :3].any() and not thought[0, :4].any()
    for s in range(TALK):
        assert not talk[0, : 3 - s, :, s].any()
    assert base[0, 3:5].any() and talk[0, 3].all()  # their targets or forced tokens are padding


def test_a_thought_sees_no_other_thought() -> None:
    """Every token of one thought is changed in turn."""
    model = model_config()
    tokens, _ = texts((6,), 6)
    K, where, r = SEEING.num_tokens, 3, 1
    drawn = np.random.default_rng(0).integers(5, 16, (1, 6, 2, K)).repeat(K + 1, axis=0)
    for k in range(K):
        drawn[1 + k, where, r, k] += 1
    base, thought, talk = changes(model, np.repeat(tokens, K + 1, axis=0), drawn)
    assert not base.any()
    for k in range(K):
        expected = np.zeros_like(thought[k])
        expected[where, r, k:] = True  # itself, and what is proposed after it
        np.testing.assert_array_equal(thought[k], expected)
        expected = np.zeros_like(talk[k])
        expected[where, r] = True
        np.testing.assert_array_equal(talk[k], expected)


# Sampling --------------------


def test_draws_follow_the_softmax_and_never_a_masked_id() -> None:
    model = model_config(vocab_size=7, vocab_chunk=512)
    params = random_params(model, seed=2)
    # The ids that may not be drawn would be the likeliest.
    kernel = params["lm"]["head"]["kernel"]
    params["lm"]["head"]["kernel"] = kernel.at[:, jnp.array([1, 5])].multiply(3.0)
    masked = (1, 5)
    R = 4000
    thought = ThoughtConfig(n_ahead=5, rationales=R, masked_ids=masked)
    tokens = jnp.array([[0, 2, 3]])
    index = jnp.array([[2]])
    drawn, entropy = sample_thoughts(
        params, tokens, jax.random.key(0), thinker=Thinker(model, thought), index_BxP=index
    )
    first, second = np.asarray(drawn)[0, 0].T
    assert not np.isin(drawn, masked).any()
    given = (params, model, np.asarray(tokens[0]), np.ones(3), 2)
    favourite = np.bincount(first).argmax()
    out = reference.rollout(*given, [favourite, 0], 1, masked_ids=masked)
    p_first, p_second = np.exp(reference.log_softmax(out.thought_logits_KxV))
    for values, p in [(first, p_first), (second[first == favourite], p_second)]:
        count = np.bincount(values, minlength=7)
        deviation = np.sqrt(len(values) * p * (1 - p)) + 1e-9
        assert len(values) > 500
        assert (np.abs(count - len(values) * p) < 4.5 * deviation).all()
    first_entropy = -np.sum(p_first * np.log(p_first + 1e-300))
    np.testing.assert_allclose(entropy[0, 0, :, 0], first_entropy, rtol=1e-4)


def test_sampling_has_no_gradient() -> None:
    """Not even through the entropies, which do depend on the parameters."""
    model = model_config()
    params = random_params(model)
    tokens, mask = texts((4,), 4)
    thought = ThoughtConfig(n_ahead=4, rationales=1)

    def entropy(params: Params) -> jax.Array:
        how = (jax.random.key(0), Thinker(model, thought), mask)
        return jnp.sum(thoughts.sample_thoughts(params, tokens, *how)[1])

    assert not any(g.any() for g in flat(jax.jit(jax.grad(entropy))(params)).values())


def test_bfloat16_scores_are_near_and_float32() -> None:
    model = model_config()
    params = random_params(model)
    tokens, _ = texts((6,) * 7, 6)
    drawn, mask = np.ones((7, 6, 2, SEEING.num_tokens), np.int64), jnp.ones((7, 6), bool)
    exact, coarse = (
        score_thoughts(
            params, np.asarray(tokens), drawn, thinker=Thinker(m, SEEING), segment_BxT=mask
        )
        for m in (model, model_config(dtype="bfloat16"))
    )
    for a, b in zip(*map(jax.tree.leaves, (exact, coarse)), strict=True):
        assert b.dtype == jnp.float32
        assert 0 < np.sqrt(np.mean((a - b) ** 2)) < 0.03 * np.std(a)
