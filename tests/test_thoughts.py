"""Sampling, scoring and cached thinking against the slow rollout; gradients against its slopes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax import attention, thoughts
from fqs_jax.model import ModelConfig, Params
from fqs_jax.thoughts import Scores, ThoughtConfig
from tests import reference
from tests.tiny_models import (
    LLAMA3_ROPE,
    MASKED_IDS,
    VOCAB,
    flat,
    model_config,
    random_params,
    texts,
)

STATIC = ("model", "thought")


class Case(NamedTuple):
    """A model, a thought, and texts.

    `positions` are chosen ones, to compare with all of them. Compiling takes longest: the cached path,
    which shares its rollout with sampling, is left out of a few.
    """

    model: dict[str, Any]
    thought: dict[str, Any]
    lengths: tuple[int, ...] = (7, 5)
    positions: tuple[tuple[int, ...], ...] | None = None
    cached: bool = True
    query_chunk: int = attention.QUERY_CHUNK


CASES = {
    "published": Case({}, {"n_ahead": 7, "n_ahead_talk": 3, "masked_ids": MASKED_IDS}),
    "one token, one step, one rationale": Case(
        {"num_kv_heads": 4, "tied_embeddings": True},
        {"n_ahead": 4, "rationales": 1, "mixing": "sigmoid", "mixing_bias": -0.5},
    ),
    "13 tokens, 8 steps": Case(
        {"vocab_chunk": 9, "rope_scaling": LLAMA3_ROPE},
        {"n_ahead": 16, "n_ahead_talk": 8, "rationales": 1, "mixing": "probability"},
        lengths=(10, 6),
        cached=False,
    ),
    "window behind which a thought loses its text": Case(
        {"num_kv_heads": 1, "sliding_window": 4},
        {"n_ahead": 16, "n_ahead_talk": 2, "temperature": 0.7, "masked_ids": MASKED_IDS},
        lengths=(8, 6),
        cached=False,
    ),
    "three rationales, window, biases, uneven query chunks": Case(
        {"sliding_window": 3, "qkv_bias": True, "vocab_chunk": 16, "remat": "full"},
        {
            "n_ahead": 6,
            "n_ahead_talk": 2,
            "rationales": 3,
            "mixing": "probability",
            "mixing_bias": 0.5,
            "reinforce_temperature": 1.0,
        },
        lengths=(11, 7),
        positions=((10, 0, 5), (6, 2, 3)),
        query_chunk=4,
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


@pytest.mark.parametrize("name", CASES)
def test_equals_the_slow_rollout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.setattr(attention, "QUERY_CHUNK", case.query_chunk)
    model = model_config(**case.model)
    thought = ThoughtConfig(**case.thought)
    params = random_params(model)
    tokens, mask = texts(case.lengths, max(case.lengths))
    key = jax.random.key(1)

    @jax.jit  # a function of its own: compiled for this query chunk
    def run(params: Params, index: jax.Array | None) -> Any:
        how = (model, thought, mask, index)
        drawn, entropy = thoughts.sample_thoughts(params, tokens, key, *how)
        scores = thoughts.score_thoughts(params, tokens, drawn, *how)
        return drawn, entropy, scores, case.cached and thoughts.think(params, tokens, key, *how)

    drawn, entropy, scores, thinking = jax.tree.map(np.asarray, run(params, None))
    options: dict[str, Any] = {
        "embedding_scale": thought.embedding_scale,
        "masked_ids": thought.masked_ids,
    }
    counts = (thought.num_tokens, thought.rationales, thought.temperature)
    expected = reference.sample(params, model, tokens, mask, key, *counts, **options)
    np.testing.assert_array_equal(drawn, expected)

    options |= {"mixing": thought.mixing, "mixing_bias": thought.mixing_bias}
    slow = reference.score(
        params,
        model,
        tokens,
        mask,
        drawn,
        thought.n_ahead_talk,
        reinforce_temperature=thought.reinforce_temperature,
        **options,
    )
    seen = defined(model, np.asarray(mask), thought.n_ahead_talk)
    close(scores.base_BxT, slow["base_log_prob_BxT"], seen[..., 0])
    close(scores.thought_BxPxRxK, slow["thought_log_prob_BxTxRxK"])
    close(scores.talk_BxPxRxA, slow["talk_log_prob_BxTxRxA"], seen[:, :, None])
    close(scores.mixing_weight_BxPxRxA, slow["mixing_weight_BxTxRxA"], seen[:, :, None])

    for b, t in [(0, 0), (0, case.lengths[0] - 1), (1, 2), (1, case.lengths[1] - 1)]:
        r = thought.rationales - 1
        out = reference.rollout(
            params, model, tokens[b], mask[b], t, drawn[b, t, r], thought.n_ahead_talk, **options
        )
        close(entropy[b, t, r], entropies(out.thought_logits_KxV, thought.temperature))
        if case.cached:
            mixed, base_logits, *_ = thinking
            close(mixed[b, t, r], reference.log_softmax(out.mixed_logits_AxV[0]))
            base_D = reference.text_hidden(params["lm"], model, tokens[b], mask[b])[t]
            close(base_logits[b, t], reference.logits(params["lm"], base_D))

    if case.cached:  # the same draws, and the packed pass's first talk step
        mixed, _, thought_tokens, weight = thinking
        np.testing.assert_array_equal(thought_tokens, drawn)
        next_token = np.roll(tokens, -1, axis=1)[:, :, None, None]
        talk = np.take_along_axis(mixed, next_token, -1)[..., 0]
        close(talk, scores.talk_BxPxRxA[..., 0], seen[:, :, :1])
        close(weight, scores.mixing_weight_BxPxRxA[..., 0], seen[:, :, :1])

    if (positions := case.positions) is not None:
        chosen = run(params, jnp.array(positions))
        everywhere = (drawn, entropy, scores._replace(base_BxT=None), thinking)
        chosen = (*chosen[:2], chosen[2]._replace(base_BxT=None), chosen[3])

        def at_chosen(x: np.ndarray) -> np.ndarray:
            return np.stack([row[list(index)] for row, index in zip(x, positions, strict=True)])

        jax.tree.map(close, chosen, jax.tree.map(at_chosen, everywhere))


def close(actual: Any, expected: Any, where: Any = True) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    where = np.broadcast_to(where, actual.shape)
    np.testing.assert_allclose(actual[where], expected[where], rtol=1e-4, atol=2e-5)


def defined(model: ModelConfig, mask_BxT: np.ndarray, talk: int) -> np.ndarray:
    """Where text predictions t + s mean anything, [B, T, A]: a window may leave padding no key."""
    if model.sliding_window is None:
        return np.ones((*mask_BxT.shape, talk), bool)
    return np.stack([np.roll(mask_BxT, -s, axis=1) & mask_BxT for s in range(talk)], axis=-1)


def entropies(logits_KxV: np.ndarray, temperature: float) -> np.ndarray:
    log_p = reference.log_softmax(logits_KxV / (temperature or 1.0))
    return -np.sum(np.exp(log_p) * log_p, axis=-1)


GRADIENT_CASES = {
    "linear": Case(
        {"qkv_bias": True, "sliding_window": 3, "vocab_chunk": 8, "remat": "full"},
        {"n_ahead": 5, "n_ahead_talk": 2, "masked_ids": MASKED_IDS},
        lengths=(5,),
        query_chunk=3,
    ),
    "probability": Case(
        {"tied_embeddings": True, "rope_scaling": LLAMA3_ROPE},
        {"n_ahead": 4, "n_ahead_talk": 3, "mixing": "probability", "mixing_bias": -0.3},
        lengths=(5, 3),
    ),
}


@functools.partial(jax.jit, static_argnames=(*STATIC, "query_chunk"))
@functools.partial(jax.grad, has_aux=True)
def weighted_scores(
    params: Params,
    weights: Scores,
    tokens: jax.Array,
    mask: jax.Array,
    drawn: jax.Array,
    *,
    model: ModelConfig,
    thought: ThoughtConfig,
    query_chunk: int,
) -> Any:
    """Gradient of a linear function of all scores, and the scores."""
    del query_chunk  # only so that another one is compiled anew
    scores = thoughts.score_thoughts(params, tokens, drawn, model, thought, mask)
    return sum(jnp.sum(w * s) for w, s in zip(weights, scores, strict=True)), scores


def gradient_inputs(case: Case) -> dict[str, Any]:
    """Arguments of `weighted_scores`, but for the parameters."""
    thought = ThoughtConfig(**case.thought)
    tokens, mask = texts(case.lengths, max(case.lengths))
    B, T = tokens.shape
    K, R, A = thought.num_tokens, thought.rationales, thought.n_ahead_talk
    rng = np.random.default_rng(0)
    drawn = rng.choice([i for i in range(VOCAB) if i not in MASKED_IDS], (B, T, R, K))
    shapes = ((B, T), drawn.shape, (B, T, R, A), (B, T, R, A))
    return {
        "weights": Scores(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes)),
        "tokens": tokens,
        "mask": mask,
        "drawn": drawn,
        "model": model_config(**case.model),
        "thought": thought,
        "query_chunk": case.query_chunk,
    }


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradients_are_slopes_of_the_slow_rollout(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slope of a random linear function of all scores, along a random direction of every leaf."""
    case = GRADIENT_CASES[name]
    monkeypatch.setattr(attention, "QUERY_CHUNK", case.query_chunk)
    inputs = gradient_inputs(case)
    thought, params = inputs["thought"], random_params(inputs["model"], seed=3)

    def slow(params: Params) -> float:
        scores = reference.score(
            params,
            inputs["model"],
            inputs["tokens"],
            inputs["mask"],
            inputs["drawn"],
            thought.n_ahead_talk,
            reinforce_temperature=thought.reinforce_temperature,
            mixing=thought.mixing,
            mixing_bias=thought.mixing_bias,
            embedding_scale=thought.embedding_scale,
            masked_ids=thought.masked_ids,
        )
        return sum(np.sum(w * s) for w, s in zip(inputs["weights"], scores.values(), strict=True))

    gradient, _ = weighted_scores(params, **inputs)
    exact, step = reference.float64(params), 1e-7
    rng = np.random.default_rng(1)
    for path, gradient_of_leaf in flat(gradient).items():
        direction = rng.normal(size=gradient_of_leaf.shape)
        up, down = (slow(moved(exact, path, s * direction)) for s in (step, -step))
        slope = float(np.sum(gradient_of_leaf * direction))
        scale = float(np.linalg.norm(gradient_of_leaf))
        assert scale > 1e-3, path
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-4 * scale), path


@pytest.mark.xfail(reason="log(1 - w) and log(w) of a weight that rounds to 1 or 0")
@pytest.mark.parametrize("scale", [100.0, -1000.0])
def test_a_saturated_mixing_weight_leaves_gradients_finite(scale: float) -> None:
    inputs = gradient_inputs(GRADIENT_CASES["probability"])
    params = random_params(inputs["model"], seed=3)
    out = params["thought"]["talk_head"]["out"]
    out["kernel"] = scale * jnp.abs(out["kernel"])
    gradient, scores = weighted_scores(params, **inputs)
    assert ((scores.mixing_weight_BxPxRxA == 1) | (scores.mixing_weight_BxPxRxA == 0)).any()
    assert all(np.isfinite(g).all() for g in flat(gradient).values())


def moved(params: Params, path: str, by: np.ndarray) -> Params:
    name, _, rest = path.partition("/")
    branch = params[name] + by if not rest else moved(params[name], rest, by)
    return {**params, name: branch}


# Parts --------------------


def test_fresh_marks_and_talk_head() -> None:
    model = model_config(param_dtype="bfloat16")
    lm = random_params(model)["lm"]
    thought = ThoughtConfig(n_ahead=4, embedding_scale=50.0)
    fresh = thoughts.init(model, thought, lm, jax.random.key(0), start_id=3, end_id=8)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(fresh))
    embedding = np.asarray(lm["embed"]["embedding"], np.float32)
    used = thoughts.marks({"lm": lm, "thought": fresh}, model, thought)
    for mark, token in zip(used, (3, 8), strict=True):
        assert mark.dtype == jnp.float32  # the compute dtype
        np.testing.assert_allclose(mark, embedding[token], rtol=1e-2)
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
    mixed = thoughts.mix_log_probs(jnp.array(base), jnp.array(after), jnp.float32(weight))
    weight = float(np.float32(weight))
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
    with pytest.raises(ValueError, match=next(reversed(fields))):
        ThoughtConfig(**fields)


def test_how_thoughts_are_counted() -> None:
    """Sampled tokens and slots of the published stages."""
    stages = [ThoughtConfig(n_ahead=n, n_ahead_talk=a) for n, a in ((16, 8), (12, 4), (8, 4))]
    assert [thought.num_tokens for thought in stages] == [13, 9, 5]
    assert [thought.num_slots for thought in stages] == [22, 14, 10]
