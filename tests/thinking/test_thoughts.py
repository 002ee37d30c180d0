"""Sampling, scoring and cached thinking against the slow rollout."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.model import attention_xla
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import parameters, prediction, talk_head, thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.parameters import mark
from fqs_jax.thinking.prediction import NextToken
from fqs_jax.thinking.thoughts import Scores
from tests import reference
from tests.tiny_models import (
    LLAMA3_ROPE,
    MASKED_IDS,
    model_config,
    random_params,
    texts,
)


class Case(NamedTuple):
    """A model, a thought, and texts; `positions` to think at (None = everywhere).

    Compiling takes longest: the cached path, which shares its rollout with sampling, has its turn
    (`think`) in a few cases only.
    """

    model: dict[str, Any]
    thought: dict[str, Any]
    lengths: tuple[int, ...] = (7, 5)
    positions: tuple[tuple[int, ...], ...] | None = None
    think: bool = False
    query_chunk: int = attention_xla.QUERY_CHUNK


CASES = {
    "published": Case({}, {"n_ahead": 7, "n_ahead_talk": 3, "masked_ids": MASKED_IDS}),
    "one token, one step, one rationale": Case(
        {"num_kv_heads": 4, "tied_embeddings": True},
        {"n_ahead": 4, "rationales": 1, "mixing": "sigmoid", "mixing_bias": -0.5},
        think=True,
    ),
    "13 tokens, 8 steps": Case(
        {"vocab_chunk": 9, "rope_scaling": LLAMA3_ROPE},
        {"n_ahead": 16, "n_ahead_talk": 8, "rationales": 1, "mixing": "probability"},
        lengths=(10, 6),
    ),
    "window behind which a thought loses its text, uneven query chunks": Case(
        {"num_kv_heads": 1, "sliding_window": 4},
        {"n_ahead": 16, "n_ahead_talk": 2, "temperature": 0.7, "masked_ids": MASKED_IDS},
        lengths=(8, 6),
        query_chunk=5,
    ),
    "three rationales at chosen positions, window, biases": Case(
        {"sliding_window": 3, "qkv_bias": True, "vocab_chunk": 16},
        {
            "n_ahead": 6,
            "n_ahead_talk": 2,
            "rationales": 3,
            "mixing": "probability",
            "mixing_bias": 0.5,
            "reinforce_temperature": 1.0,
        },
        lengths=(8, 6),
        positions=((7, 0, 5), (4, 2, 3)),
        think=True,
    ),
    "greedy, uneven query chunks": Case(
        {"qkv_bias": True, "tied_embeddings": True, "norm_eps": 1e-2},
        {"n_ahead": 5, "n_ahead_talk": 5, "temperature": 0.0, "embedding_scale": 30.0},
        lengths=(9, 4),
        query_chunk=5,
    ),
}


@pytest.fixture(autouse=True)
def sigmoid_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow rollout knows the published mixing and the one of distributions; adds the third."""
    mix = reference.mix

    def with_sigmoid(params: Params, base_D: Any, thought_D: Any, mixing: str, bias: float) -> Any:
        if mixing != "sigmoid":
            return mix(params, base_D, thought_D, mixing, bias)
        output = reference.talk_head(params["thought"]["talk_head"], base_D, thought_D)
        weight = 1 / (1 + np.exp(-output - bias))
        return reference.logits(params["lm"], (1 - weight) * base_D + weight * thought_D), weight

    monkeypatch.setattr(reference, "mix", with_sigmoid)


class Run:
    """A case's inputs, and both ways to compute with them."""

    def __init__(self, case: Case) -> None:
        self.model, self.thought = model_config(**case.model), ThoughtConfig(**case.thought)
        self.params = random_params(self.model)
        self.tokens, self.mask = texts(case.lengths, max(case.lengths))
        self.key = jax.random.key(1)
        everywhere = np.tile(np.arange(max(case.lengths)), (len(case.lengths), 1))
        self.where_BxP = np.array(everywhere if case.positions is None else case.positions)
        self.index = None if case.positions is None else jnp.array(case.positions)
        self.options: dict[str, Any] = {
            "embedding_scale": self.thought.embedding_scale,
            "masked_ids": self.thought.masked_ids,
        }
        self.mixing: dict[str, Any] = {
            "mixing": self.thought.mixing,
            "mixing_bias": self.thought.mixing_bias,
        }

    def fast(self) -> tuple[np.ndarray, np.ndarray, Scores]:
        """Drawn tokens, their entropies, and their scores; compiled for this case alone."""

        @jax.jit
        def draw_and_score(params: Params) -> Any:
            how = (Thinker(self.model, self.thought), self.mask, self.index)
            drawn, entropy = thoughts.sample_thoughts(params, self.tokens, self.key, *how)
            return drawn, entropy, thoughts.score_thoughts(params, self.tokens, drawn, *how)

        return jax.tree.map(np.asarray, draw_and_score(self.params))

    def think(self) -> tuple[NextToken, np.ndarray]:
        @jax.jit
        def think(params: Params) -> Any:
            how = (Thinker(self.model, self.thought), self.mask, self.index)
            return prediction.think(params, self.tokens, self.key, *how)

        return jax.tree.map(np.asarray, think(self.params))

    def slow_draws(self) -> np.ndarray:
        """At all text positions."""
        t = self.thought
        given = (self.params, self.model, self.tokens, self.mask, self.key)
        counts = (t.num_tokens, t.rationales, t.temperature)
        return reference.sample(*given, *counts, **self.options)

    def slow_scores(self, drawn_BxTxRxK: np.ndarray) -> dict[str, np.ndarray]:
        return reference.score(
            self.params,
            self.model,
            self.tokens,
            self.mask,
            drawn_BxTxRxK,
            self.thought.n_ahead_talk,
            self.thought.reinforce_temperature,
            **self.options,
            **self.mixing,
        )

    def slow_rollout(self, b: int, t: int, thought_K: np.ndarray) -> reference.Rollout:
        return reference.rollout(
            self.params,
            self.model,
            self.tokens[b],
            self.mask[b],
            t,
            thought_K,
            self.thought.n_ahead_talk,
            **self.options,
            **self.mixing,
        )

    def chosen(self, x: Any) -> np.ndarray:
        """[B, T, ...] at the positions that are thought at, [B, P, ...]."""
        return np.asarray(x)[np.arange(len(self.where_BxP))[:, None], self.where_BxP]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_slow_rollout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_xla, "QUERY_CHUNK", CASES[name].query_chunk)
    run = Run(CASES[name])
    drawn, entropy, scores = run.fast()
    slow_drawn = run.slow_draws()
    np.testing.assert_array_equal(drawn, run.chosen(slow_drawn))
    check_entropies(run, drawn, entropy)
    check_scores(run, scores, run.slow_scores(slow_drawn))
    if CASES[name].think:
        check_thinking(run, drawn, scores)


PLACES = [(0, 0), (0, -1), (1, 1)]  # rows and positions whose whole distributions are compared


def check_entropies(run: Run, drawn: np.ndarray, entropy: np.ndarray) -> None:
    for b, p in PLACES:
        rollout = run.slow_rollout(b, int(run.where_BxP[b, p]), drawn[b, p, -1])
        log_p = reference.log_softmax(rollout.thought_logits_KxV / (run.thought.temperature or 1.0))
        close(entropy[b, p, -1], -np.sum(np.exp(log_p) * log_p, axis=-1))


def check_scores(run: Run, scores: Scores, slow: dict[str, np.ndarray]) -> None:
    seen_BxTxA = defined(run.model, np.asarray(run.mask), run.thought.n_ahead_talk)
    seen_BxPx1xA = run.chosen(seen_BxTxA)[:, :, None]
    close(scores.base_BxT, slow["base_log_prob_BxT"], seen_BxTxA[..., 0])
    close(scores.blocks.thought_BxPxRxK, run.chosen(slow["thought_log_prob_BxTxRxK"]))
    close(scores.blocks.talk_BxPxRxA, run.chosen(slow["talk_log_prob_BxTxRxA"]), seen_BxPx1xA)
    close(
        scores.blocks.mixing_weight_BxPxRxA, run.chosen(slow["mixing_weight_BxTxRxA"]), seen_BxPx1xA
    )


def check_thinking(run: Run, drawn: np.ndarray, scores: Scores) -> None:
    """The cached path: the same draws, and the packed pass's first talk step."""
    (mixed, tokens, weight), base_logits = run.think()
    np.testing.assert_array_equal(tokens, drawn)
    seen = run.chosen(defined(run.model, np.asarray(run.mask), 1))
    targets = run.chosen(np.roll(run.tokens, -1, axis=1))[:, :, None, None]
    close(
        np.take_along_axis(np.asarray(mixed), targets, -1)[..., 0],
        scores.blocks.talk_BxPxRxA[..., 0],
        seen,
    )
    close(weight, scores.blocks.mixing_weight_BxPxRxA[..., 0], seen)
    for b, p in PLACES:
        t = int(run.where_BxP[b, p])
        expected = run.slow_rollout(b, t, drawn[b, p, -1]).mixed_logits_AxV[0]
        close(mixed[b, p, -1], reference.log_softmax(expected))
        lm = run.params["lm"]
        hidden_TxD = reference.text_hidden(lm, run.model, run.tokens[b], run.mask[b])
        close(base_logits[b, p], reference.logits(lm, hidden_TxD[t]))


def close(actual: Any, expected: Any, where: Any = True) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    where = np.broadcast_to(where, actual.shape)
    np.testing.assert_allclose(actual[where], expected[where], rtol=1e-4, atol=2e-5)


def defined(model: ModelConfig, mask_BxT: np.ndarray, talk: int) -> np.ndarray:
    """The text predictions t + s that are defined, [B, T, A]: a window may leave padding no key."""
    if model.sliding_window is None:
        return np.ones((*mask_BxT.shape, talk), bool)
    return np.stack([np.roll(mask_BxT, -s, axis=1) & mask_BxT for s in range(talk)], axis=-1)


# Parts --------------------


def test_fresh_marks_and_talk_head() -> None:
    model = model_config(param_dtype="bfloat16")
    lm = random_params(model)["lm"]
    thinker = Thinker(model, ThoughtConfig(n_ahead=4, embedding_scale=50.0))
    fresh = parameters.init(thinker, lm, jax.random.key(0), start_id=3, end_id=8)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(fresh))
    embedding = np.asarray(lm["embed"]["embedding"], np.float32)
    for name, token in (("start", 3), ("end", 8)):
        used = mark({"lm": lm, "thought": fresh}, name, thinker)
        assert used.dtype == jnp.float32  # the compute dtype
        np.testing.assert_allclose(used, embedding[token], rtol=1e-2)
    head = fresh["talk_head"]
    assert not head["out"]["kernel"].any() and head["out"]["kernel"].shape == (12, 1)
    for name, shape in (("hidden_1", (24, 12)), ("hidden_2", (12, 12))):
        kernel = np.asarray(head[name]["kernel"], np.float32)
        assert kernel.shape == shape and not head[name]["bias"].any()
        assert np.std(kernel) == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize("weight", [1e-6, 0.3, 1 - 1e-6])
def test_mixture_of_distributions(weight: float) -> None:
    rng = np.random.default_rng(0)
    base, after = reference.log_softmax(rng.normal(0, 30, (2, 5)))
    score = jnp.float32(np.log(weight) - np.log1p(-weight))
    mixed = talk_head.mix_log_probs(jnp.array(base), jnp.array(after), score)
    expected = np.log((1 - weight) * np.exp(base) + weight * np.exp(after))
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_ahead": 3},
        {"n_ahead": 4, "n_ahead_talk": 0},
        {"n_ahead": 4, "rationales": 0},
        {"n_ahead": 4, "mixing": "quadratic"},
    ],
)
def test_impossible_thoughts(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(reversed(fields))):
        ThoughtConfig(**fields)


def test_how_thoughts_are_counted() -> None:
    """Sampled tokens and slots of the published stages."""
    stages = [ThoughtConfig(n_ahead=n, n_ahead_talk=a) for n, a in ((16, 8), (12, 4), (8, 4))]
    assert [thought.num_tokens for thought in stages] == [13, 9, 5]
    assert [thought.num_slots for thought in stages] == [22, 14, 10]
