"""Whether the true tokens are the likeliest ones after thoughts, against all logits in numpy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.thinking import talk_head
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.scoring import BlockScores, read_text, score_blocks
from tests import reference
from tests.tiny_models import model_config, random_params

B, T, R, A = 2, 5, 2, 2
MODEL = model_config(num_layers=1, vocab_chunk=3)
MASK = np.ones((B, T), bool)


@functools.cache
def greedy_text() -> Any:
    """Two rows that go on as the plain prediction has it, so that some targets are the likeliest."""
    params, tokens = random_params(MODEL), np.array([[3] + [0] * (T - 1), [11] + [0] * (T - 1)])
    for b, t in np.ndindex(B, T - 1):
        hidden = reference.text_hidden(params["lm"], MODEL, tokens[b], MASK[b])
        tokens[b, t + 1] = np.argmax(reference.logits(params["lm"], hidden[t]))
    return tokens


def all_log_probs(thought: ThoughtConfig, drawn: Any) -> Any:
    """The mixed prediction over the vocabulary, [B, T, R, A, V] in float64."""
    params, tokens = random_params(MODEL), greedy_text()
    found = np.zeros((B, T, R, A, MODEL.vocab_size))
    for b, t, r in np.ndindex(B, T, R):
        opening = reference.start_and_thought(params, drawn[b, t, r], 100.0)
        closing = reference.end_and_forced(params, [tokens[b, (t + 1) % T]], 100.0)
        row = tokens[b], MASK[b]
        block = reference.block_hidden(params, MODEL, *row, t, np.vstack([opening, closing]))
        text = reference.text_hidden(params["lm"], MODEL, *row)
        for s in range(A):
            base, after = text[(t + s) % T], block[-A + s]
            score = reference.talk_head(params["thought"]["talk_head"], base, after)
            found[b, t, r, s] = mixed(params, base, after, score, thought)
    return found


def mixed(params: Any, base: Any, after: Any, score: float, thought: ThoughtConfig) -> Any:
    """The formulas of the three kinds of mixing."""
    weight = score if thought.mixing == "linear" else 1 / (1 + np.exp(-score - thought.mixing_bias))
    if thought.mixing == "probability":
        p, q = (np.exp(log_softmax(params, hidden)) for hidden in (base, after))
        return np.log((1 - weight) * p + weight * q)
    return log_softmax(params, (1 - weight) * base + weight * after)


def log_softmax(params: Any, hidden: Any) -> Any:
    return reference.log_softmax(reference.logits(params["lm"], hidden))


@pytest.mark.parametrize("mixing", talk_head.KINDS)
def test_targets_that_are_the_likeliest(mixing: str) -> None:
    """Read three logits at a time; what is scored besides, and its gradient, stay as they are."""
    thought = ThoughtConfig(n_ahead=4, n_ahead_talk=A, mixing=mixing, mixing_bias=0.5)
    tokens = greedy_text()
    drawn = np.random.default_rng(1).integers(0, MODEL.vocab_size, (B, T, R, 1))

    def scored(params: Any, correct: bool) -> tuple[jax.Array, BlockScores]:
        text = read_text(params, jnp.asarray(tokens, jnp.int32), MODEL)
        given = jnp.asarray(drawn, jnp.int32), Thinker(MODEL, thought)
        scores = score_blocks(params, text, *given, correct=correct)
        return jnp.sum(scores.talk_BxPxRxA), scores

    gradient = jax.grad(scored, has_aux=True)
    both = jax.jit(lambda params: (gradient(params, True), gradient(params, False)))
    (grads, scores), (usual_grads, usual) = both(random_params(MODEL))
    expected = all_log_probs(thought, drawn)
    target = np.stack([np.roll(tokens, -1 - s, axis=1) for s in range(A)], axis=-1)[:, :, None]
    target = np.broadcast_to(target, (B, T, R, A))
    likeliest = np.argmax(expected, -1) == target
    assert scores.correct_BxPxRxA.dtype == bool and 0.2 < likeliest.mean() < 0.9
    np.testing.assert_array_equal(scores.correct_BxPxRxA, likeliest)
    log_p = np.take_along_axis(expected, target[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.talk_BxPxRxA, log_p, rtol=1e-4, atol=1e-4)

    assert usual.correct_BxPxRxA is None
    np.testing.assert_allclose(scores.talk_BxPxRxA, usual.talk_BxPxRxA, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(usual_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))
