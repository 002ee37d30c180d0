"""Gradients of the packed scoring pass against slopes of the slow rollout."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.model import attention_xla
from fqs_jax.model.decoder import Params
from fqs_jax.thinking import thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.scoring import BlockScores
from fqs_jax.thinking.thoughts import Scores
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


class Case(NamedTuple):
    model: dict[str, Any]
    thought: dict[str, Any]
    lengths: tuple[int, ...]
    query_chunk: int = attention_xla.QUERY_CHUNK


CASES = {
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


@functools.partial(jax.jit, static_argnames=("thinker", "query_chunk"))
@functools.partial(jax.grad, has_aux=True)
def weighted_scores(
    params: Params,
    weights: Scores,
    tokens: jax.Array,
    mask: jax.Array,
    drawn: jax.Array,
    *,
    thinker: Thinker,
    query_chunk: int,
) -> Any:
    """Gradient of a linear function of all scores, and the scores."""
    del query_chunk  # only so that another one is compiled anew
    scores = thoughts.score_thoughts(params, tokens, drawn, thinker, mask)
    products = jax.tree.map(lambda w, s: jnp.sum(w * s), weights, scores)
    return sum(jax.tree.leaves(products)), scores


def gradient_inputs(case: Case) -> dict[str, Any]:
    """Arguments of `weighted_scores`, but for the parameters."""
    thought = ThoughtConfig(**case.thought)
    tokens, mask = texts(case.lengths, max(case.lengths))
    B, T = tokens.shape
    K, R, A = thought.num_tokens, thought.rationales, thought.n_ahead_talk
    rng = np.random.default_rng(0)
    drawn = rng.choice([i for i in range(VOCAB) if i not in MASKED_IDS], (B, T, R, K))
    shapes = ((B, T), drawn.shape, (B, T, R, A), (B, T, R, A))
    base, *blocks = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    return {
        "weights": Scores(base, BlockScores(*blocks)),
        "tokens": tokens,
        "mask": mask,
        "drawn": drawn,
        "thinker": Thinker(model_config(**case.model), thought),
        "query_chunk": case.query_chunk,
    }


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_slopes_of_the_slow_rollout(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slope of a random linear function of all scores, along a random direction of every leaf."""
    case = CASES[name]
    monkeypatch.setattr(attention_xla, "QUERY_CHUNK", case.query_chunk)
    inputs = gradient_inputs(case)
    thinker = inputs["thinker"]
    thought, params = thinker.thought, random_params(thinker.model, seed=3)

    def slow(params: Params) -> float:
        scores = reference.score(
            params,
            thinker.model,
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
        pairs = zip(jax.tree.leaves(inputs["weights"]), scores.values(), strict=True)
        return sum(np.sum(np.asarray(weight) * score) for weight, score in pairs)

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


@pytest.mark.parametrize("scale", [100.0, -1000.0])
def test_a_saturated_mixing_weight_leaves_gradients_finite(scale: float) -> None:
    inputs = gradient_inputs(CASES["probability"])
    params = random_params(inputs["thinker"].model, seed=3)
    out = params["thought"]["talk_head"]["out"]
    out["kernel"] = scale * jnp.abs(out["kernel"])
    gradient, scores = weighted_scores(params, **inputs)
    assert (
        (scores.blocks.mixing_weight_BxPxRxA == 1) | (scores.blocks.mixing_weight_BxPxRxA == 0)
    ).any()
    assert all(np.isfinite(g).all() for g in flat(gradient).values())


def moved(params: Params, path: str, by: np.ndarray) -> Params:
    name, _, rest = path.partition("/")
    branch = params[name] + by if not rest else moved(params[name], rest, by)
    return {**params, name: branch}
