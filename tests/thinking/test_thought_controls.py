"""Thoughts that the model has no say in, and rewards and losses of thoughts taken alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from fqs_jax.curriculum import objective, resolve
from fqs_jax.curriculum.stage import Stage
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives import quiet_star
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import keys as keys_lib
from fqs_jax.thinking import parameters as parameters_lib
from fqs_jax.thinking import prediction, thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from tests.tiny_models import model_config

B, T, K = 2, 6, 2
THOUGHT = ThoughtConfig(
    n_ahead=K + 3, n_ahead_talk=2, rationales=2, mixing="probability", embedding_scale=2.0
)
MODEL = model_config(vocab_size=13)


def parameters(thought: ThoughtConfig, model: ModelConfig = MODEL) -> Any:
    lm = decoder.init(model, jax.random.key(0))
    fresh = parameters_lib.init(Thinker(model, thought), lm, jax.random.key(1), 3, 4)
    params = {"lm": lm, "thought": fresh}
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape)  # noqa: E731
    return params | {"thought": jax.tree.map(noise, params["thought"])}


def text() -> jax.Array:
    return jax.random.randint(jax.random.key(3), (B, T), 0, MODEL.vocab_size)


def draw(thought: ThoughtConfig, seed: int = 5) -> tuple[jax.Array, jax.Array]:
    key = jax.random.key(seed)
    return thoughts.sample_thoughts(parameters(thought), text(), key, Thinker(MODEL, thought))


def test_random_tokens_are_uniform_over_what_may_be_drawn() -> None:
    allowed = [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    thought = dataclasses.replace(THOUGHT, tokens="random", masked_ids=(3, 12), rationales=400)
    tokens, entropy = draw(thought)
    chex.assert_shape(tokens, (B, T, 400, K))
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=13)
    assert counts[3] == counts[12] == 0
    expected = counts.sum() / len(allowed)
    chi_squared = np.sum((counts[allowed] - expected) ** 2) / expected
    assert chi_squared < 29.6  # 0.1% of the time by chance, 10 degrees of freedom
    np.testing.assert_allclose(entropy, np.log(len(allowed)), rtol=1e-6)


@pytest.mark.parametrize("tokens", ["random", "pause"])
def test_the_prediction_after_such_a_thought_equals_a_plain_pass_over_it(tokens: str) -> None:
    """One row of text, marks and thought as input embeddings, without any cache."""
    thought = dataclasses.replace(THOUGHT, tokens=tokens)
    params, data, where = parameters(thought), text(), 3
    key = jax.random.key(7)
    (mixed, drawn, weight), _ = prediction.think(params, data, key, Thinker(MODEL, thought))
    for r in range(2):
        marks = {name: 2.0 * params["thought"][name] for name in ("start", "end")}
        middle = decoder.embed(params["lm"], drawn[0, where, r], MODEL)
        if tokens == "pause":
            middle = jnp.broadcast_to(2.0 * params["thought"]["pause"], middle.shape)
        read = decoder.embed(params["lm"], data[0, : where + 1], MODEL)
        row = jnp.concatenate([read, marks["start"][None], middle, marks["end"][None]])
        hidden = plain_pass(params["lm"], row)
        base, after = hidden[where], hidden[-1]
        expected, expected_weight = prediction.mixed_log_probs(params, base, after, thought)
        np.testing.assert_allclose(mixed[0, where, r], expected, atol=2e-5)
        np.testing.assert_allclose(weight[0, where, r], expected_weight, atol=1e-5)


def plain_pass(lm: Any, embeddings_TxD: jax.Array) -> jax.Array:
    """Final-norm hidden states of a row given as embeddings, by dense causal attention."""
    length = len(embeddings_TxD)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, layer: Any, window: int | None
    ) -> tuple[jax.Array, None]:
        q, k, v = q[0], k[0], v[0]  # [T, N, H], [T, G, H] twice
        k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
        scores = jnp.einsum("tnh,snh->nts", q, k) / np.sqrt(q.shape[-1])
        scores = jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf)
        return jnp.einsum("nts,snh->tnh", jax.nn.softmax(scores), v)[None], None

    hidden, _ = decoder.run_layers(
        lm, embeddings_TxD[None], jnp.arange(length)[None], attend, MODEL
    )
    return hidden[0]


@pytest.mark.parametrize("tokens", ["random", "pause"])
def test_training_and_reading_see_the_same_thoughts(tokens: str) -> None:
    thought = dataclasses.replace(THOUGHT, tokens=tokens)
    params, data, key = parameters(thought), text(), jax.random.key(7)
    drawn, _ = thoughts.sample_thoughts(params, data, key, Thinker(MODEL, thought))
    (mixed, thought_of, _), _ = prediction.think(params, data, key, Thinker(MODEL, thought))
    np.testing.assert_array_equal(drawn, thought_of)
    scores = thoughts.score_thoughts(params, data, drawn, Thinker(MODEL, thought))
    found = jnp.take_along_axis(mixed[:, :-1], data[:, 1:, None, None], axis=-1)[..., 0]
    np.testing.assert_allclose(scores.blocks.talk_BxPxRxA[:, :-1, :, 0], found, atol=2e-5)


def test_a_pause_is_learned_and_its_tokens_are_nobodys() -> None:
    thought = dataclasses.replace(THOUGHT, tokens="pause")
    params, data = parameters(thought), text()
    batch = {"tokens": data, "mask": jnp.ones((B, T), bool)}
    config = QuietStarConfig(policy_weight=0.0)

    def loss(params: Any) -> jax.Array:
        key = jax.random.key(0)
        return quiet_star.quiet_star_loss(params, batch, key, Thinker(MODEL, thought), config)[0]

    gradient = jax.grad(loss)(params)["thought"]["pause"]
    assert float(jnp.linalg.norm(gradient)) > 0
    assert "pause" not in parameters(THOUGHT)["thought"]
    tokens, entropy = draw(thought)
    assert not tokens.any() and not entropy.any()


def test_unsampled_thoughts_have_no_policy_to_improve() -> None:
    config = tiny.get_config()
    config.thought.tokens = "random"
    with pytest.raises(UserError, match="set quiet_star.policy_weight to 0"):
        resolve.recipes(config, MODEL)
    config.quiet_star.policy_weight = 0.0
    resolve.recipes(config, MODEL)
    with pytest.raises(UserError, match="tokens 'words' is none of sampled, random, pause"):
        dataclasses.replace(THOUGHT, tokens="words")


def test_no_network_pass_is_counted_for_thoughts_that_are_not_sampled() -> None:
    config = tiny.get_config()
    stage = Stage(1, "think", "quiet_star", n_ahead=6, n_ahead_talk=2, steps=1)
    sampled = objective.step_flops(resolve.recipe(config, stage, MODEL))
    config.thought.tokens = "pause"
    assert objective.step_flops(resolve.recipe(config, stage, MODEL)) < sampled


def numbers(config: QuietStarConfig) -> tuple[Any, Any, Any]:
    """Loss and metrics of sampled thoughts, and the log-probabilities they are made of."""
    params, data, key = parameters(THOUGHT), text(), jax.random.key(9)
    batch = {"tokens": data, "mask": jnp.ones((B, T), bool)}
    loss, sums = quiet_star.quiet_star_loss(params, batch, key, Thinker(MODEL, THOUGHT), config)
    metrics = metrics_lib.values(sums)
    where_BxP = jnp.broadcast_to(jnp.arange(T), (B, T))
    keys = keys_lib.thought_keys(key, where_BxP, THOUGHT.rationales)
    drawn, _ = thoughts.sample_thoughts(params, data, keys, Thinker(MODEL, THOUGHT))
    # A weight of all but 1 leaves the thought's own prediction.
    own = jax.tree.map(jnp.copy, params)
    own["thought"]["talk_head"]["out"]["kernel"] *= 0.0
    alone = dataclasses.replace(THOUGHT, mixing_bias=60.0)
    return loss, metrics, thoughts.score_thoughts(own, data, drawn, Thinker(MODEL, alone))


def test_rewards_of_the_post_thought_prediction_equal_their_definition() -> None:
    config = QuietStarConfig(policy_weight=2.0, advantage="leave_one_out", reward="post_thought")
    _, metrics, alone = numbers(config)
    base = np.asarray(alone.base_BxT)
    rewards = [
        alone.blocks.talk_BxPxRxA[b, t, r, 0]
        - base[b, t]
        + alone.blocks.talk_BxPxRxA[b, t, r, 1]
        - base[b, t + 1]
        for b in range(B)
        for t in range(T - 1 - 2)
        for r in range(2)
    ]
    np.testing.assert_allclose(metrics["reward_mean"], np.mean(rewards), rtol=1e-4)
    np.testing.assert_allclose(metrics["reward_std"], np.std(rewards), rtol=1e-4)


def test_the_post_thought_loss_is_added_with_its_weight() -> None:
    plain, metrics, _ = numbers(QuietStarConfig(policy_weight=0.0))
    more, _, alone = numbers(QuietStarConfig(policy_weight=0.0, post_thought_weight=0.25))
    target_BxAxU = batch_lib.talk_targets({"mask": jnp.ones((B, T), bool)}, 2)
    losses = []
    for s in range(2):
        real = np.asarray(target_BxAxU[:, s])[..., None]
        nll = -np.asarray(alone.blocks.talk_BxPxRxA[:, :-1, :, s])
        losses.append(np.sum(nll * real) / (2 * real.sum()))
    np.testing.assert_allclose(more - plain, 0.25 * np.mean(losses), rtol=1e-4)
    assert float(metrics["nll_mixed"]) != pytest.approx(float(np.mean(losses)), rel=1e-3)


def test_an_unknown_reward_is_refused() -> None:
    with pytest.raises(UserError, match="reward 'praise' is none of mixed, post_thought, correct"):
        QuietStarConfig(reward="praise")
