"""Documents packed in one row: each as if it were alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.model import decoder
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives import distillation, plain, quiet_star
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives.distillation import DistillConfig
from fqs_jax.objectives.plain import NTPConfig
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.thinking import thoughts
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from tests.tiny_models import VOCAB, model_config, random_params

LENGTHS = (6, 4)
THOUGHT = ThoughtConfig(n_ahead=5, n_ahead_talk=3, rationales=2)
RNG = np.random.default_rng(0)
TOKENS = [RNG.integers(0, VOCAB, n).astype(np.int32) for n in LENGTHS]
DRAWN = [RNG.integers(0, VOCAB, (n, 2, 2)).astype(np.int32) for n in LENGTHS]


def packed() -> batch_lib.Batch:
    """Both documents and two places of padding in one row."""
    tokens = np.concatenate([*TOKENS, [0, 0]])[None].astype(np.int32)
    segment = np.repeat([1, 2, 0], (*LENGTHS, 2))[None].astype(np.int32)
    return {
        "tokens": jnp.asarray(tokens),
        "mask": jnp.asarray(segment > 0),
        "segment": jnp.asarray(segment),
    }


def apart() -> batch_lib.Batch:
    """A row for each document."""
    tokens = np.zeros((2, 12), np.int32)
    mask = np.arange(12) < np.array(LENGTHS)[:, None]
    tokens[mask] = np.concatenate(TOKENS)
    return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}


@pytest.mark.parametrize("window", [None, 3])
def test_scores_of_packed_documents(window: int | None) -> None:
    """Plain and mixed predictions and thoughts; of talk steps those whose target is in the document."""
    model = model_config(sliding_window=window)
    params = random_params(model)
    score = jax.jit(thoughts.score_thoughts, static_argnames="thinker")
    one, two = packed(), apart()
    drawn_one = np.concatenate([*DRAWN, np.zeros((2, 2, 2), np.int32)])[None]
    drawn_two = np.zeros((2, 12, 2, 2), np.int32)
    drawn_two[np.asarray(two["mask"])] = np.concatenate(DRAWN)
    thinker = Thinker(model, THOUGHT)
    together = score(params, one["tokens"], drawn_one, thinker=thinker, segment_BxT=one["segment"])
    alone = score(params, two["tokens"], drawn_two, thinker=thinker, segment_BxT=two["mask"])
    for row, (start, length) in enumerate(((0, 6), (6, 4))):
        here = slice(start, start + length)
        np.testing.assert_allclose(
            together.blocks.thought_BxPxRxK[0, here],
            alone.blocks.thought_BxPxRxK[row, :length],
            atol=2e-5,
        )
        before_last = slice(start, start + length - 1)
        np.testing.assert_allclose(
            together.base_BxT[0, before_last], alone.base_BxT[row, : length - 1], atol=2e-5
        )
        for s in range(THOUGHT.n_ahead_talk):
            np.testing.assert_allclose(
                together.blocks.talk_BxPxRxA[0, start : start + length - 1 - s, :, s],
                alone.blocks.talk_BxPxRxA[row, : length - 1 - s, :, s],
                atol=2e-5,
            )


def test_what_is_predicted_of_packed_documents() -> None:
    """A talk step from x_t never predicts a token of the next document."""
    predicted = np.asarray(batch_lib.talk_targets(packed(), 3))[0].astype(int)
    assert predicted.tolist() == [
        [1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("objective", ["next_token", "ntp", "distill"])
def test_losses_of_packed_documents(objective: str) -> None:
    """The same targets, so the same means. (The policy part of NTP counts places, and has fewer.)"""
    model = model_config()
    params, key = random_params(model), jax.random.key(0)

    def loss(batch: batch_lib.Batch) -> Any:
        if objective == "next_token":
            return metrics_lib.values(plain.next_token_loss(params, batch, key, model)[1])
        batch = batch | {"teacher_log_prob": jnp.full(batch["tokens"][:, 1:].shape, -3.0)}
        if objective == "distill":  # every token of every document counts, also the last ones
            log_p = jax.nn.log_softmax(jnp.arange(model.vocab_size) / 5)
            same = jnp.broadcast_to(log_p, (*batch["tokens"].shape, model.vocab_size))
            batch |= {"teacher_log_probs": same}
            return metrics_lib.values(
                distillation.distill_loss(params, batch, key, model, DistillConfig())[1]
            )
        config = NTPConfig("expected", clip=False)
        metrics = metrics_lib.values(plain.ntp_loss(params, batch, key, model, config)[1])
        places = batch["tokens"][:, 1:].size
        return metrics | {"policy_loss": metrics["policy_loss"] * places}

    ours, theirs = jax.jit(loss)(packed()), jax.jit(loss)(apart())
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)


def test_a_thinking_step_learns_nothing_across_documents() -> None:
    """Whatever the other document says, loss and gradients of a target stay."""
    model = model_config()
    params = random_params(model)
    batch = packed()
    batch["target"] = batch["segment"] == 1

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return quiet_star.quiet_star_loss(
            params,
            batch | {"tokens": tokens},
            jax.random.key(0),
            Thinker(model, THOUGHT),
            QuietStarConfig(policy_weight=0.0),
        )[0]

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    other = batch["tokens"].at[0, 6:10].add(1)
    one, two = value_and_grad(params, batch["tokens"]), value_and_grad(params, other % VOCAB)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
    assert decoder.num_params(one[1]) == decoder.num_params(params)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(two[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * (np.max(np.abs(a)) + 1e-9))
