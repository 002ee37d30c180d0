"""The optimiser chain: schedule, learning rate of a part, decay, clipping, skipped steps."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from fqs_jax.training import optimizer
from tests.tiny_models import flat, model_config, random_params

LEARNING_RATE = 0.5
_ALL = random_params(model_config(qkv_bias=True))
# A leaf of every kind: compiling a chain takes longer with every one.
PARAMS = {
    "lm": {
        "embed": _ALL["lm"]["embed"],
        "layers": {name: _ALL["lm"]["layers"][name] for name in ("mlp_norm", "q")},
        "final_norm": _ALL["lm"]["final_norm"],
    },
    "thought": {
        "start": _ALL["thought"]["start"],
        "end": _ALL["thought"]["end"],
        "talk_head": {"hidden_1": _ALL["thought"]["talk_head"]["hidden_1"]},
    },
}


def settings(**changes: Any) -> Any:
    """The published settings, without warm-up and decays unless asked for."""
    config = common.get_config()
    config.optimizer.update({"warmup_steps": 0, "decay_steps": 10**9, "weight_decay": 0.0})
    config.optimizer.update({"clip_norm": 1e9, **changes})
    return config.optimizer


def gradients(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), PARAMS)


def norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in flat(tree).values())))


def step(transform: Any, grads: Any, state: Any) -> Any:
    return jax.jit(transform.update)(grads, state, PARAMS, finite=True)


@pytest.mark.parametrize(
    ("decay_steps", "steps", "expected"),
    [
        # Warm-up of 4 from 0 to the learning rate, then straight down to 0 at the end.
        (0, 14, {0: 0.0, 1: 0.25, 2: 0.5, 4: 1.0, 9: 0.5, 14: 0.0, 20: 0.0}),
        (104, 14, {0: 0.0, 3: 0.75, 4: 1.0, 14: 0.9, 54: 0.5, 104: 0.0}),
        (0, 3, {0: 0.0, 3: 0.75, 4: 1.0, 5: 0.0}),  # a stage shorter than its warm-up
    ],
)
def test_schedule(decay_steps: int, steps: int, expected: dict[int, float]) -> None:
    config = settings(warmup_steps=4, decay_steps=decay_steps)
    schedule = optimizer.schedule(config, LEARNING_RATE, steps)
    for count, share in expected.items():
        assert schedule(count) == pytest.approx(share * LEARNING_RATE, abs=1e-7), count


def test_the_first_step_without_warm_up_is_a_whole_one() -> None:
    assert optimizer.schedule(settings(), LEARNING_RATE, 10)(0) == pytest.approx(LEARNING_RATE)


def test_every_part_has_its_learning_rate() -> None:
    """Adam's first step is the learning rate in the direction of the sign."""
    scale = {"lm": 1.0, "talk_head": 3.0, "marks": 0.25}
    transform = optimizer.make(settings(lr_scale=scale), LEARNING_RATE, 10)
    grads = gradients()
    updates, _ = step(transform, grads, transform.init(PARAMS))
    for (path, update), gradient in zip(flat(updates).items(), flat(grads).values(), strict=True):
        part = path.split("/")[1] if path.startswith("thought") else "lm"
        part = "marks" if part in ("start", "end") else part
        np.testing.assert_allclose(
            update, -LEARNING_RATE * scale[part] * np.sign(gradient), rtol=1e-4, err_msg=path
        )


def test_a_plain_model_has_one_part() -> None:
    plain = {"lm": PARAMS["lm"]}
    assert set(jax.tree.leaves(optimizer.part_labels(plain))) == {"lm"}
    transform = optimizer.make(settings(), LEARNING_RATE, 10)
    grads = {"lm": gradients()["lm"]}
    updates, _ = transform.update(grads, transform.init(plain), plain, finite=True)
    np.testing.assert_allclose(np.abs(updates["lm"]["final_norm"]["scale"]), 0.5, rtol=1e-4)


def test_adam_over_several_steps() -> None:
    """Moments by hand."""
    beta1, beta2, eps = 0.5, 0.75, 0.1
    transform = optimizer.make(settings(beta1=beta1, beta2=beta2, eps=eps), LEARNING_RATE, 10)
    update, state = jax.jit(transform.update), transform.init(PARAMS)
    mean, square = np.zeros(12), np.zeros(12)
    for count in range(1, 4):
        grads = gradients(seed=count)
        updates, state = update(grads, state, PARAMS, finite=True)
        gradient = np.asarray(grads["lm"]["final_norm"]["scale"], np.float64)
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        scaled = mean / (1 - beta1**count) / (np.sqrt(square / (1 - beta2**count)) + eps)
        ours = updates["lm"]["final_norm"]["scale"]
        np.testing.assert_allclose(ours, -LEARNING_RATE * scaled, rtol=1e-4)


def test_decay_spares_norms_and_biases() -> None:
    """Without a gradient, weights shrink in proportion to themselves and to their learning rate."""
    scale = {"lm": 1.0, "talk_head": 3.0, "marks": 0.25}
    config = settings(weight_decay=0.1, lr_scale=scale)
    transform = optimizer.make(config, LEARNING_RATE, 10)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = step(transform, zero, transform.init(PARAMS))
    labels = optimizer.part_labels(PARAMS)
    expected = jax.tree.map(lambda part, x: -LEARNING_RATE * scale[part] * 0.1 * x, labels, PARAMS)
    spared = 0
    for (path, update), decay in zip(flat(updates).items(), flat(expected).values(), strict=True):
        if path.endswith(("/scale", "/bias")):
            assert not update.any(), path
            spared += 1
        else:
            np.testing.assert_allclose(update, decay, rtol=1e-5, err_msg=path)
    assert spared == 4  # two norms, the biases of q and of the talk head


@pytest.mark.parametrize(("clip_norm", "share"), [(2.0, None), (1e9, 1.0)])
def test_clipping_is_by_the_norm_of_all_parts_together(
    clip_norm: float, share: float | None
) -> None:
    """Adam hides the scale of its input: an eps far above it shows the clipped gradient."""
    transform = optimizer.make(settings(clip_norm=clip_norm, eps=1e4), LEARNING_RATE, 10)
    grads = gradients()
    share = clip_norm / norm(grads) if share is None else share
    updates, _ = step(transform, grads, transform.init(PARAMS))
    for update, gradient in zip(flat(updates).values(), flat(grads).values(), strict=True):
        np.testing.assert_allclose(
            update, -LEARNING_RATE * share * gradient / 1e4, rtol=1e-2, atol=1e-9
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_dtypes_are_clipped_by_a_norm_in_float32(dtype: Any) -> None:
    """Squares of float16 gradients overflow, and bfloat16 has no digits for the norm."""
    grads = {"lm": {"kernel": jnp.full((100, 100), 3.0, dtype)}}
    clipped, _ = optimizer._clip_by_global_norm(2.0).update(grads, optax.EmptyState())
    found = clipped["lm"]["kernel"]
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), 0.02, rtol=4e-3)


@pytest.mark.parametrize("limit", [1e-37, 1.0, 1e30])
def test_gradients_of_zero_stay_zero(limit: float) -> None:
    grads = {"lm": {"kernel": jnp.zeros(3)}}
    clip = optimizer._clip_by_global_norm(limit)
    np.testing.assert_array_equal(clip.update(grads, optax.EmptyState())[0]["lm"]["kernel"], 0)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad: float) -> None:
    """One bad entry: parameters, moments and schedule stay, and the next good step is as if."""
    config = settings(warmup_steps=4, weight_decay=0.1, clip_norm=1.0)
    transform = optimizer.make(config, LEARNING_RATE, 10)
    update = jax.jit(transform.update)
    good, broken = gradients(1), copy.copy(gradients(2))
    broken["thought"] = broken["thought"] | {"end": broken["thought"]["end"].at[3].set(bad)}

    _, clean = update(good, transform.init(PARAMS), PARAMS, finite=True)
    state = clean
    for count in (1, 2, 3):
        updates, state = update(broken, state, PARAMS, finite=False)
        assert not any(leaf.any() for leaf in flat(updates).values())
        assert (state.notfinite_count, state.total_notfinite) == (count, count)
        assert not state.last_finite
    expected, _ = update(good, clean, PARAMS, finite=True)
    updates, state = update(good, state, PARAMS, finite=True)
    assert (state.notfinite_count, state.total_notfinite) == (0, 3) and state.last_finite
    for ours, theirs in zip(flat(updates).values(), flat(expected).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.any()


def test_a_new_state_can_be_donated() -> None:
    """No array is in it twice."""
    state = optimizer.make(settings(), LEARNING_RATE, 10).init({"lm": PARAMS["lm"]})
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves) > 8


def test_norms_of_the_parts() -> None:
    grads = gradients()
    norms = optimizer.part_norms(grads)
    thought = grads["thought"]
    parts = {
        "grad_norm/lm": grads["lm"],
        "grad_norm/talk_head": thought["talk_head"],
        "grad_norm/marks": {name: thought[name] for name in ("start", "end")},
    }
    assert norms.keys() == parts.keys()
    for name, part in parts.items():
        assert norms[name] == pytest.approx(norm(part), rel=1e-5)
    assert list(optimizer.part_norms({"lm": grads["lm"]})) == ["grad_norm/lm"]


def test_norms_of_bfloat16_gradients_are_summed_in_float32() -> None:
    grads = {"lm": {"final_norm": {"scale": jnp.ones(10_000, jnp.bfloat16)}}}
    assert optimizer.part_norms(grads)["grad_norm/lm"] == 100
