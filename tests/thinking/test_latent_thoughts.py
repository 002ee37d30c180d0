"""Latent thoughts against the slow rollout, which computes every state of a thought from scratch."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from fqs_jax.curriculum import objective, resolve
from fqs_jax.curriculum.stage import Stage
from fqs_jax.model import attention_xla
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import quiet_star
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import flops, parameters, prediction, thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from fqs_jax.thinking.scoring import BlockScores
from tests import reference
from tests.jaxprs import matmul_flops
from tests.thinking.test_thoughts_gradients import moved
from tests.tiny_models import flat, model_config, random_params, texts

KEY = jax.random.key(1)
THOUGHT = ThoughtConfig(
    n_ahead=6, n_ahead_talk=2, rationales=1, mixing="probability", tokens="latent"
)


class Case(NamedTuple):
    """A model, a thought, and texts; `positions` to think at (None = everywhere)."""

    model: dict[str, Any]
    thought: dict[str, Any]
    lengths: tuple[int, ...] = (6, 4)
    positions: tuple[tuple[int, ...], ...] | None = None


CASES = {
    "everywhere": Case({}, {}),
    "one latent, two rationales": Case(
        {"tied_embeddings": True}, {"n_ahead": 4, "mixing": "linear", "rationales": 2}
    ),
    "chosen positions, a window that closes in the thought, biases": Case(
        {"sliding_window": 3, "qkv_bias": True, "num_layers": 3, "remat": "full"},
        {"n_ahead_talk": 3},
        positions=((5, 0, 3), (2, 1, 3)),
    ),
}


class Run:
    """Both ways to compute a case."""

    def __init__(self, case: Case) -> None:
        self.model = model_config(**case.model)
        self.thought = dataclasses.replace(THOUGHT, **case.thought)
        self.thinker = Thinker(self.model, self.thought)
        self.tokens, self.mask = texts(case.lengths, max(case.lengths))
        everywhere = np.tile(np.arange(max(case.lengths)), (len(case.lengths), 1))
        self.where_BxP = np.array(everywhere if case.positions is None else case.positions)
        self.index = None if case.positions is None else jnp.array(case.positions)
        self.params = random_params(self.model, seed=3)

    def scores(self, params: Params) -> BlockScores:
        t = self.thought
        nothing = jnp.zeros((*self.where_BxP.shape, t.rationales, t.num_tokens), jnp.int32)
        return thoughts.score_thoughts(
            params, self.tokens, nothing, self.thinker, self.mask, self.index
        ).blocks

    def slow(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the targets and mixing weights, [B, P, R, A]."""
        t = self.thought
        options: dict[str, Any] = {
            "mixing": t.mixing,
            "mixing_bias": t.mixing_bias,
            "embedding_scale": t.embedding_scale,
            "latent": True,
        }
        log_probs = np.zeros((*self.where_BxP.shape, t.rationales, t.n_ahead_talk))
        weights = np.zeros(log_probs.shape)
        for b, p in np.ndindex(self.where_BxP.shape):
            where, row = int(self.where_BxP[b, p]), self.tokens[b]
            given = (row, self.mask[b], where, np.zeros(t.num_tokens, np.int64), t.n_ahead_talk)
            out = reference.rollout(params, self.model, *given, **options)
            weights[b, p] = out.mixing_weight_A
            for s in range(t.n_ahead_talk):
                target = row[(where + 1 + s) % len(row)]
                log_probs[b, p, :, s] = reference.log_softmax(out.mixed_logits_AxV[s])[target]
        return log_probs, weights

    def real(self) -> np.ndarray:
        """The positions of real tokens that real ones follow, [B, P, R, A]."""
        mask, rows = np.asarray(self.mask), np.arange(len(self.where_BxP))[:, None]
        steps = range(self.thought.n_ahead_talk)
        real = [mask[rows, (self.where_BxP + s) % mask.shape[1]] for s in steps]
        real_BxPxA = np.logical_and.accumulate(np.stack(real, axis=-1), axis=-1)
        return np.repeat(real_BxPxA[:, :, None], self.thought.rationales, axis=2)


@pytest.mark.parametrize("name", CASES)
def test_scoring_and_the_cached_path_equal_the_slow_rollout(name: str) -> None:
    run = Run(CASES[name])
    scores = jax.jit(run.scores)(run.params)
    slow_log_probs, slow_weights = run.slow(run.params)
    real = run.real()
    assert real.any()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(np.asarray(scores.talk_BxPxRxA)[real], slow_log_probs[real])
    close(np.asarray(scores.mixing_weight_BxPxRxA)[real], slow_weights[real])
    assert not scores.thought_BxPxRxK.any()

    @jax.jit
    def think(params: Params) -> Any:
        return prediction.think(params, run.tokens, KEY, run.thinker, run.mask, run.index)[0]

    log_prob_BxPxRxV, _, weight_BxPxR = think(run.params)
    rows = np.arange(len(run.where_BxP))[:, None]
    target = np.roll(run.tokens, -1, axis=1)[rows, run.where_BxP][:, :, None, None]
    found = np.take_along_axis(np.asarray(log_prob_BxPxRxV), target, axis=-1)[..., 0]
    close(found[real[..., 0]], slow_log_probs[..., 0][real[..., 0]])
    close(np.asarray(weight_BxPxR)[real[..., 0]], slow_weights[..., 0][real[..., 0]])


def test_gradients_are_slopes_of_the_slow_rollout() -> None:
    """The slope of a random linear function of the scores, along a random direction of every leaf."""
    run = Run(CASES["chosen positions, a window that closes in the thought, biases"])
    weight = np.random.default_rng(0).normal(size=(2, *run.real().shape)) * run.real()

    @jax.jit
    @jax.grad
    def fast(params: Params) -> jax.Array:
        scores = run.scores(params)
        both = jnp.stack([scores.talk_BxPxRxA, scores.mixing_weight_BxPxRxA])
        return jnp.sum(weight * both)

    gradient, exact, step = fast(run.params), reference.float64(run.params), 1e-7
    rng = np.random.default_rng(1)
    for path, of_leaf in flat(gradient).items():
        direction = rng.normal(size=of_leaf.shape)
        up, down = (
            np.sum(weight * np.stack(run.slow(moved(exact, path, s * direction))))
            for s in (step, -step)
        )
        scale = float(np.linalg.norm(of_leaf))
        assert scale > 1e-3, path
        expected = pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-4 * scale)
        assert float(np.sum(of_leaf * direction)) == expected, path


# The objective --------------------


def loss_of(config: QuietStarConfig, params: Params, batch: Any, thinker: Thinker) -> Any:
    return quiet_star.quiet_star_loss(params, batch, KEY, thinker, config)


def packed_batch() -> dict[str, jax.Array]:
    tokens, _ = texts((8, 8), 8)
    segment = jnp.array([[1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0]])
    return {"tokens": tokens, "mask": segment > 0, "segment": segment}


@pytest.mark.parametrize("chunk", [0, 3])
def test_the_loss_is_that_of_the_slow_rollout(chunk: int) -> None:
    """Without documents in one row; in chunks of positions, or all at once."""
    model = model_config(position_chunk=chunk)
    params, config = random_params(model, seed=3), QuietStarConfig(policy_weight=0.0)
    tokens, mask = texts((7, 5), 7)
    thinker = Thinker(model, THOUGHT)
    batch = {"tokens": tokens, "mask": mask}
    loss, metrics = jax.jit(functools.partial(loss_of, config, thinker=thinker))(params, batch)
    slow = reference.score(
        params,
        model,
        tokens,
        mask,
        np.zeros((2, 7, 1, THOUGHT.num_tokens)),
        THOUGHT.n_ahead_talk,
        mixing="probability",
        latent=True,
    )
    expected = reference.losses(slow, tokens, mask, policy_weight=0.0)
    assert float(loss) == pytest.approx(expected["total"], rel=1e-5)


def test_documents_of_a_row_are_apart() -> None:
    """The second document's latents do not see the first: another first document changes nothing."""
    model, params = model_config(), random_params(model_config(), seed=3)
    batch = packed_batch()
    other = batch["tokens"].at[0, :3].add(1) % model.vocab_size

    @jax.jit
    def scores(tokens: jax.Array) -> Any:
        nothing = jnp.zeros((*tokens.shape, 1, THOUGHT.num_tokens), jnp.int32)
        return thoughts.score_thoughts(
            params, tokens, nothing, Thinker(model, THOUGHT), batch["segment"]
        ).blocks.talk_BxPxRxA

    before, after = scores(batch["tokens"]), scores(other)
    np.testing.assert_allclose(before[0, 3:6], after[0, 3:6], atol=1e-6)
    assert float(jnp.abs(before[0, 0] - after[0, 0]).max()) > 1e-3


def test_some_positions_are_an_unbiased_share_of_all() -> None:
    """The loss at a share of the positions, averaged over draws, is that at all of them."""
    model, params = model_config(), random_params(model_config(), seed=3)
    tokens, mask = texts((7,), 7)
    thought = dataclasses.replace(THOUGHT, n_ahead=5)
    batch, thinker = {"tokens": tokens, "mask": mask}, Thinker(model, thought)
    whole = QuietStarConfig(policy_weight=0.0, base_weight=0.0)
    part = dataclasses.replace(whole, position_fraction=0.5)
    loss = functools.partial(quiet_star.quiet_star_loss, params, batch, thinker=thinker)
    everywhere, _ = jax.jit(functools.partial(loss, config=whole))(KEY)
    keys = jax.random.split(jax.random.key(5), 100)
    draws = jax.jit(lambda keys: jax.lax.map(lambda key: loss(key, config=part)[0], keys))(keys)
    error = float(jnp.std(draws)) / np.sqrt(len(keys))
    assert abs(float(jnp.mean(draws)) - float(everywhere)) < 4 * error
    assert float(jnp.std(draws)) > 0


def test_there_is_nothing_to_sample_and_no_parameter_of_its_own() -> None:
    model, params = model_config(), random_params(model_config())
    tokens, _ = texts((6,), 6)
    drawn, entropy = jax.jit(thoughts.sample_thoughts, static_argnames="thinker")(
        params, tokens, KEY, thinker=Thinker(model, THOUGHT)
    )
    assert drawn.shape == (1, 6, 1, THOUGHT.num_tokens)
    assert not drawn.any() and not entropy.any()
    fresh = parameters.init(Thinker(model, THOUGHT), params["lm"], KEY, 0, 1)
    assert set(fresh) == {"start", "end", "talk_head"}


def test_what_cannot_be_trained_is_refused() -> None:
    config = tiny.get_config()
    config.thought.tokens = "latent"
    with pytest.raises(UserError, match="set quiet_star.policy_weight to 0"):
        resolve.recipes(config, model_config())
    config.quiet_star.policy_weight = 0.0
    with pytest.raises(UserError, match="the 2 latent thoughts .* set thought.rationales to 1"):
        resolve.recipes(config, model_config())
    config.thought.rationales = 1
    resolve.recipes(config, model_config())


def test_a_teacher_has_one_latent_thought() -> None:
    config = tiny.get_config()
    config.distill.teacher_thoughts = 3
    stage = Stage(2, "distill", "distill", teacher=1, steps=1)
    recipe = resolve.recipe(config, stage, model_config())
    sampled = dataclasses.replace(THOUGHT, tokens="sampled")
    assert objective.teacher_thought(recipe, sampled).rationales == 3
    assert objective.teacher_thought(recipe, THOUGHT).rationales == 1
    pauses = dataclasses.replace(sampled, tokens="pause")
    assert objective.teacher_thought(recipe, pauses).rationales == 1
    greedy = dataclasses.replace(recipe, eval_temperature=0.0)
    assert objective.teacher_thought(greedy, sampled).rationales == 1
    noise = dataclasses.replace(sampled, tokens="random")
    assert objective.teacher_thought(greedy, noise).rationales == 3


def test_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step costs one pass over the slots, without a head for tokens; counted as traced.

    As in test_flops.py, the program masks later keys of the last pass's own slots, and recomputes scores.
    """
    monkeypatch.setattr(attention_xla, "QUERY_CHUNK", 1)
    model, T, B = model_config(), 6, 2
    K, M = THOUGHT.num_tokens, THOUGHT.num_slots
    tokens, mask = texts((T,) * B, T)
    batch, config = {"tokens": tokens, "mask": mask}, QuietStarConfig(policy_weight=0.0)
    step = jax.value_and_grad(
        functools.partial(loss_of, config, batch=batch, thinker=Thinker(model, THOUGHT)),
        has_aux=True,
    )
    masked = sum(M - slot for slot in range(K + 1, M + 1))
    own = sum(range(1, K + 1)) + M * (M - K)
    text = (T + 1) / 2
    again = (flops.attend(model, text) * (M + 1) + flops.attend(model, own)) // 2
    in_vain = flops.TRAIN * flops.attend(model, masked) + again
    traced = matmul_flops(step, random_params(model))
    counted = flops.quiet_star_step(model, THOUGHT, B, T)
    assert traced == counted + B * T * in_vain
    pause = dataclasses.replace(THOUGHT, tokens="pause")
    heads = flops.TRAIN * B * T * K * flops.vocabulary(model)
    assert flops.quiet_star_step(model, pause, B, T) == counted + heads
