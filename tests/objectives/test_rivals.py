"""Other gradients that train thoughts (RLP, JEPO, RPT) against their formulas, in numpy and exactly."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives import quiet_star
from fqs_jax.objectives.batch import Batch, talk_targets
from fqs_jax.objectives.thought_losses import (
    QuietStarConfig,
    ThoughtLosses,
    advantages,
    thought_losses,
)
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.positions import Positions
from fqs_jax.thinking.scoring import BlockScores
from fqs_jax.thinking.thoughts import Scores
from fqs_jax.training import step as step_lib
from tests.tiny_models import flat, model_config, random_params, texts

RLP = QuietStarConfig(
    base_weight=0.0, mixed_scale=0.0, policy_weight=1.0, advantage="leave_one_out"
)
JEPO = QuietStarConfig(likelihood="average", advantage="bound", policy_weight=2.0)
RPT = dataclasses.replace(RLP, reward="correct")
B, T, K = 2, 9, 4
# Padding, and a token in the middle that is nobody's target.
TARGET = (np.arange(T) < np.array([[9], [6]])) & (np.arange(T) != 3)


def scores_of(R: int, A: int) -> Scores:
    rng = np.random.default_rng(0)
    shapes = ((B, T), (B, T, R, K), (B, T, R, A))
    base, drawn, talk = (jnp.asarray(-rng.exponential(2.0, s), jnp.float32) for s in shapes)
    correct = jnp.asarray(rng.random((B, T, R, A)) < 0.4)
    blocks = BlockScores(drawn, talk, jnp.zeros((B, T, R, A)), correct_BxPxRxA=correct)
    return Scores(base, blocks)


@functools.partial(jax.jit, static_argnames="config")
def losses_of(scores: Scores, config: QuietStarConfig) -> ThoughtLosses:
    data = {"target": jnp.asarray(TARGET), "mask": jnp.ones((B, T), bool)}
    return thought_losses(scores, talk_targets(data, scores.blocks.talk_BxPxRxA.shape[-1]), config)


def rewarded(A: int) -> Any:
    """The places with a reward: b, t."""
    return itertools.product(range(B), range(T - 1 - A))


# RLP --------------------


def test_the_slow_baseline_of_rlp_cancels_from_its_advantage() -> None:
    """r = log p(x | thought) - log p_ema(x), A = G / (G - 1) (r - mean r), for any p_ema."""
    G, A = 3, 2
    scores = scores_of(G, A)
    gradient = jax.jit(jax.grad(lambda s: losses_of(s, RLP).total(RLP), allow_int=True))(scores)
    ours = np.asarray(losses_of(scores, RLP).blocks.advantage_BxRxP)
    talk = np.asarray(scores.blocks.talk_BxPxRxA, np.float64)
    for seed in range(2):
        ema_BxT = -np.random.default_rng(seed).exponential(3.0, (B, T))
        expected = np.zeros((B, T, G, K))
        for b, t in rewarded(A):
            real = [s for s in range(A) if TARGET[b, t + 1 + s]]
            r = np.array(
                [sum(talk[b, t, g, s] - ema_BxT[b, t + s] for s in real) for g in range(G)]
            )
            advantage = G / (G - 1) * (r - r.mean())
            np.testing.assert_allclose(ours[b, :, t], advantage, atol=1e-5)
            expected[b, t] = -advantage[:, None] / (B * G * (T - 1 - A) * K)
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(gradient.blocks.thought_BxPxRxK, expected, atol=1e-6)
    assert not gradient.base_BxT.any() and not gradient.blocks.talk_BxPxRxA.any()


def test_rlp_has_no_gradient_through_the_prediction() -> None:
    """Neither the talk head nor the end mark, which come after the drawn tokens, learns anything."""
    for path, gradient in flat(stepped("rlp")[1]).items():
        after = path == "thought/end" or path.startswith("thought/talk_head")
        assert gradient.any() != after, path


@pytest.mark.parametrize("base_weight", [0.3, 0.5])
def test_the_mixed_loss_has_the_rest_of_the_weight(base_weight: float) -> None:
    scores = scores_of(2, 2)
    for scale in (1.0, 0.25):
        config = QuietStarConfig(base_weight, scale, policy_weight=0.0)
        losses = losses_of(scores, config)
        expected = base_weight * losses.base + (1 - base_weight) * scale * losses.blocks.talk
        np.testing.assert_allclose(losses.total(config), expected, rtol=1e-6)
    assert QuietStarConfig(base_weight).mixed_weight == 1 - base_weight


# JEPO --------------------


@pytest.mark.parametrize(("R", "A"), [(2, 1), (2, 3), (4, 2)])
def test_the_bound_equals_its_definition(R: int, A: int) -> None:
    """Probabilities are multiplied and averaged as such, in float64."""
    scores = scores_of(R, A)
    ours = losses_of(scores, JEPO)
    p = np.exp(np.asarray(scores.blocks.talk_BxPxRxA, np.float64))
    base = np.exp(np.asarray(scores.base_BxT, np.float64))
    steps: list[list[float]] = [[] for _ in range(A)]
    for b, t in itertools.product(range(B), range(T - 1)):
        before = np.ones(R)
        for s in range(A):
            if t + 1 + s < T and TARGET[b, t + 1 + s]:
                steps[s].append(-np.log(np.mean(before * p[b, t, :, s]) / np.mean(before)))
                before = before * p[b, t, :, s]
    talk = np.mean([np.mean(step) for step in steps])
    np.testing.assert_allclose(ours.blocks.talk, talk, rtol=1e-5)

    policy, whole = 0.0, 0
    for b, t in rewarded(A):
        real = [s for s in range(A) if TARGET[b, t + 1 + s]]
        joint = np.prod(p[b, t][:, real], axis=1)
        ratio = joint / np.prod([base[b, t + s] for s in real])
        others = [np.mean(np.delete(joint, r)) for r in range(R)]
        bound = np.log(np.mean(joint)) - np.log(others)
        np.testing.assert_allclose(ours.blocks.reward_BxRxP[b, :, t], np.log(ratio), atol=1e-5)
        np.testing.assert_allclose(ours.blocks.advantage_BxRxP[b, :, t], R * bound, atol=1e-5)
        log_pi = np.asarray(scores.blocks.thought_BxPxRxK[b, t], np.float64).mean(-1)
        policy -= np.sum(bound * log_pi) / (B * (T - 1 - A))
        whole += len(real) == A
    assert whole > 1
    np.testing.assert_allclose(ours.blocks.policy, policy, rtol=1e-4)
    np.testing.assert_allclose(
        ours.total(JEPO), 0.5 * ours.base + 0.5 * talk + 2.0 * policy, rtol=1e-4
    )


def test_one_thought_has_the_published_form() -> None:
    """log of a mean of one; without other thoughts the baseline is the plain prediction."""
    scores = scores_of(1, 3)
    alone, usual = (
        losses_of(scores, config)
        for config in (JEPO, QuietStarConfig(policy_weight=2.0, advantage="leave_one_out"))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), alone, usual)


def test_the_bound_is_leave_one_out_to_first_order() -> None:
    reward = 1e-3 * jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    bound, usual = (advantages(reward, kind) for kind in ("bound", "leave_one_out"))
    np.testing.assert_allclose(bound, usual, atol=2e-5)
    assert np.abs(usual).max() > 1e-3


@pytest.mark.parametrize("n", [2, 3])
def test_gradients_of_the_bound_are_right_on_average(n: int) -> None:
    """The mean over all draws of n thoughts of one token out of three, against the bound's gradient.

    The policy loss is a mean over thoughts and tokens of sums over talk steps, the likelihood a mean
    over steps. So the two are one gradient where the policy's weight is the other's times K / A.
    """
    ids, A = 3, 2
    rng = np.random.default_rng(n)
    tables = (jnp.asarray(rng.normal(size=ids)), jnp.asarray(-rng.exponential(2.0, (ids, A))))
    draws = jnp.array(list(itertools.product(range(ids), repeat=n)))
    where = Positions(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)))
    config = QuietStarConfig(0.0, 1.0, "average", 1 / A, advantage="bound")

    def bound(tables: Any) -> jax.Array:
        logits, talk_VxA = tables
        chance = jnp.prod(jax.nn.softmax(logits)[draws], axis=1)
        return jnp.sum(chance * jnp.log(jnp.mean(jnp.exp(talk_VxA.sum(1))[draws], axis=1)))

    def loss(tables: Any, drawn_n: jax.Array, config: QuietStarConfig) -> jax.Array:
        logits, talk_VxA = tables
        log_pi = jax.nn.log_softmax(logits)[drawn_n].reshape(1, 1, n, 1)
        talk = talk_VxA[drawn_n][None, None]
        scores = Scores(jnp.zeros((1, A + 2)), BlockScores(log_pi, talk, jnp.zeros_like(talk)))
        target = jnp.ones((1, A, A + 1), bool)
        return thought_losses(scores, target, config, jnp.ones(A), where).total(config)

    @functools.partial(jax.jit, static_argnames="config")
    def expected(config: QuietStarConfig) -> Any:
        each = jax.vmap(jax.grad(functools.partial(loss, config=config)), (None, 0))(tables, draws)
        chance = jnp.prod(jax.nn.softmax(tables[0])[draws], axis=1)
        return jax.tree.map(lambda g: A * jnp.tensordot(chance, g, 1), each)

    exact = jax.jit(jax.grad(lambda tables: -bound(tables)))(tables)
    for a, b in zip(expected(config), exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(b).max() > 0.05
    other = expected(dataclasses.replace(config, advantage="leave_one_out"))
    assert np.abs(other[0] - exact[0]).max() > 0.02  # the test can tell


# RPT --------------------


@pytest.mark.parametrize("A", [1, 3])
def test_the_reward_is_the_share_of_likeliest_targets(A: int) -> None:
    scores = scores_of(3, A)
    ours = losses_of(scores, RPT).blocks
    gradient = jax.jit(jax.grad(lambda s: losses_of(s, RPT).total(RPT), allow_int=True))(scores)
    correct = np.asarray(scores.blocks.correct_BxPxRxA)
    expected = np.zeros((B, T, 3, K))
    seen = set()
    for b, t in rewarded(A):
        real = [s for s in range(A) if TARGET[b, t + 1 + s]]
        reward = correct[b, t][:, real].mean(1) if real else np.zeros(3)
        np.testing.assert_allclose(ours.reward_BxRxP[b, :, t], reward, rtol=1e-6)
        others = [np.mean(np.delete(reward, r)) for r in range(3)]
        np.testing.assert_allclose(ours.advantage_BxRxP[b, :, t], reward - others, atol=1e-6)
        expected[b, t] = -(reward - others)[:, None] / (B * 3 * (T - 1 - A) * K)
        seen |= set(reward)
    assert {0.0, 1.0} <= seen and len(seen) == {1: 2, 3: 4}[A]
    assert not ours.reward_BxRxP[..., T - 1 - A :].any()
    np.testing.assert_allclose(gradient.blocks.thought_BxPxRxK, expected, atol=1e-6)
    assert np.abs(expected).max() > 0.005
    assert not gradient.base_BxT.any() and not gradient.blocks.talk_BxPxRxA.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"likelihood": "sum"}, "likelihood 'sum' is none of each, average"),
        ({"advantage": "bound", "reward": "correct"}, "set quiet_star.advantage=leave_one_out"),
    ],
)
def test_settings_that_mean_nothing(fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        QuietStarConfig(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


# The whole step --------------------

RIVALS = {
    "rlp": (RLP, ThoughtConfig(n_ahead=5, n_ahead_talk=2)),
    "jepo": (JEPO, ThoughtConfig(n_ahead=4, n_ahead_talk=2, rationales=3)),
    "rpt": (
        dataclasses.replace(RPT, base_weight=0.5, mixed_scale=1.0),
        ThoughtConfig(n_ahead=4, n_ahead_talk=2, mixing="probability", mixing_bias=1.0),
    ),
}


def stepped(
    name: str, fraction: float = 1.0, split: bool = False, chunk: int = 0, parts: int = 1
) -> Any:
    """Loss with metrics, and gradients, of two padded rows of a random model."""
    config, thought = RIVALS[name]
    config = dataclasses.replace(config, position_fraction=fraction)
    model = model_config(num_layers=1, vocab_chunk=chunk, position_chunk=chunk)
    tokens, mask = texts((9, 6), 9)
    data = {"tokens": tokens, "mask": mask}

    def loss(params: Any, batch: Batch, key: jax.Array) -> Any:
        thinker = Thinker(model, thought)
        return quiet_star.quiet_star_loss(params, batch, key, thinker, config, split)

    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts > 1:
        gradient = functools.partial(
            step_lib._in_microbatches, gradient, parts, thought.n_ahead_talk
        )
    (value, sums), grads = jax.jit(gradient)(random_params(model), data, jax.random.key(1))
    return (value, metrics_lib.values(sums)), grads


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["jepo", "rpt"])
def test_rationales_of_a_position_stay_together(name: str) -> None:
    """In microbatches, in chunks of positions and of logits, and as rows of their own."""
    whole = stepped(name, fraction=0.5)
    pieces = stepped(name, fraction=0.5, split=True, chunk=3, parts=2)
    assert whole[0][1]["reward_std"] > 0.1
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(a).max())))
