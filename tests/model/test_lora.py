"""Adapters against their closed form, the chain rule, and the program without them."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fqs_jax.model import decoder, lora, placement
from fqs_jax.model.lora import Lora
from fqs_jax.objectives import accumulation, quiet_star
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from tests.tiny_models import model_config, random_params, texts

MODEL = model_config(qkv_bias=True)
ALL = Lora(rank=3, alpha=6.0, targets=tuple(lora.TARGETS))
KEY = jax.random.key(0)
TOKENS, MASK = texts((7, 5), 7)
BATCH = {"tokens": TOKENS, "mask": MASK}


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


@pytest.fixture(scope="module")
def adapters(params: Any) -> Any:
    """Adapters with random B, so that they change the model."""
    made = lora.fresh(ALL, params["lm"]["layers"], KEY)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), made)


def whole(params: Any, adapters: Any, scale: float) -> Any:
    return lora.joined({"lm": adapters}, params, scale)


def by_hand(params: Any, adapters: Any, scale: float) -> Any:
    """The `lm` tree with W + scale A B, kernel by kernel, as matrices."""
    changed = {}
    for name, adapter in adapters["layers"].items():
        kernel = params["lm"]["layers"][name]["kernel"]
        layers = [
            kernel[i]
            + scale
            * (
                adapter["lora_a"][i].reshape(-1, ALL.rank)
                @ adapter["lora_b"][i].reshape(ALL.rank, -1)
            ).reshape(kernel.shape[1:])
            for i in range(len(kernel))
        ]
        changed[name] = params["lm"]["layers"][name] | {"kernel": jnp.stack(layers)}
    return params["lm"] | {"layers": params["lm"]["layers"] | changed}


def test_fresh_adapters_change_nothing_and_are_as_in_peft(params: Any) -> None:
    """A is uniform within sqrt(6 / ((1 + 5) inputs)): kaiming uniform with a = sqrt(5)."""
    made = lora.fresh(ALL, params["lm"]["layers"], KEY)
    with_adapters = whole(params, made, ALL.scale)["lm"]
    np.testing.assert_array_equal(
        decoder.logits(with_adapters, TOKENS, MODEL), decoder.logits(params["lm"], TOKENS, MODEL)
    )
    for name, inputs in {"q": 12, "o": 4 * 8, "down": 20}.items():
        drawn = np.asarray(made["layers"][name]["lora_a"])
        assert drawn.size == 2 * inputs * 3 and not np.any(made["layers"][name]["lora_b"])
        assert 0.9 / np.sqrt(inputs) < np.abs(drawn).max() <= 1 / np.sqrt(inputs)
        assert np.std(drawn) == pytest.approx(np.sqrt(1 / (3 * inputs)), rel=0.2)
    small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["lm"]["layers"])
    kinds = {leaf.dtype for leaf in jax.tree.leaves(lora.fresh(ALL, small, KEY))}
    assert kinds == {jnp.dtype("float32")}


def test_a_targets_draws_do_not_depend_on_the_other_targets(params: Any) -> None:
    layers = params["lm"]["layers"]
    alone = lora.fresh(Lora(3, 1.0, ("up",)), layers, KEY)["layers"]["up"]["lora_a"]
    np.testing.assert_array_equal(alone, lora.fresh(ALL, layers, KEY)["layers"]["up"]["lora_a"])


def test_logits_and_merging_against_the_closed_form(params: Any, adapters: Any) -> None:
    expected = decoder.logits(by_hand(params, adapters, ALL.scale), TOKENS, MODEL)
    assert np.abs(expected - decoder.logits(params["lm"], TOKENS, MODEL)).max() > 0.1
    unmerged = decoder.logits(whole(params, adapters, ALL.scale)["lm"], TOKENS, MODEL)
    np.testing.assert_allclose(unmerged, expected, atol=2e-4)
    base = jax.tree.map(jnp.copy, params["lm"])  # which the merge consumes
    merged = lora.merged(base, adapters, ALL.scale)
    for path, leaf in traverse_util.flatten_dict(by_hand(params, adapters, ALL.scale)).items():
        found = traverse_util.flatten_dict(merged)[path]
        np.testing.assert_allclose(found, leaf, atol=1e-5, err_msg="/".join(path))


def test_gradients_against_the_chain_rule(
    params: Any, adapters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dW the gradient of the materialised W: dA = scale dW B', dB = scale A' dW."""
    model = dataclasses.replace(MODEL, position_chunk=3)
    thinker = Thinker(model, ThoughtConfig(n_ahead=5, n_ahead_talk=2))

    def loss(tree: Any) -> Any:
        return quiet_star.quiet_star_loss(tree, BATCH, KEY, thinker, QuietStarConfig())[0]

    shared: list[Any] = []
    summed = accumulation.summed

    def noted(function: Any, tree: Any, *rest: Any) -> Any:
        shared.append(tree)
        return summed(function, tree, *rest)

    monkeypatch.setattr(accumulation, "summed", noted)
    trained, frozen = lora.split(whole(params, adapters, 1.0))
    found = jax.jit(jax.grad(lambda t: loss(lora.joined(t, frozen, ALL.scale))))(trained)
    ((summed_over, _),) = shared  # chunk by chunk, gradients of these alone are added up
    chex.assert_trees_all_equal_structs(summed_over, trained)
    full = jax.jit(jax.grad(loss))({**params, "lm": by_hand(params, adapters, ALL.scale)})
    assert found["thought"].keys() == {"start", "end", "talk_head"}
    for a, b in zip(*map(jax.tree.leaves, (found["thought"], full["thought"])), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max())
    for name, adapter in adapters["layers"].items():
        dW = full["lm"]["layers"][name]["kernel"].reshape(2, -1, adapter["lora_b"][0, 0].size)
        down = adapter["lora_a"].reshape(2, -1, ALL.rank)
        up = adapter["lora_b"].reshape(2, ALL.rank, -1)
        expected = {
            "lora_a": ALL.scale * dW @ up.swapaxes(1, 2),
            "lora_b": ALL.scale * down.swapaxes(1, 2) @ dW,
        }
        for part, gradient in expected.items():
            ours = np.asarray(found["lm"]["layers"][name][part]).reshape(gradient.shape)
            most = np.abs(gradient).max()
            assert most > 0
            np.testing.assert_allclose(ours, gradient, atol=2e-3 * most, err_msg=f"{name}/{part}")


def test_a_tree_without_adapters_is_trained_whole(params: Any) -> None:
    trained, frozen = lora.split(params)
    assert trained is params and frozen == {} and lora.joined(params, {}, 2.0) is params


def test_split_and_joined_are_inverse(params: Any, adapters: Any) -> None:
    tree = whole(params, adapters, 1.0)
    trained, frozen = lora.split(tree)
    assert set(traverse_util.flatten_dict(frozen)) == {
        path for path in traverse_util.flatten_dict(params) if path[0] == "lm"
    }
    chex.assert_trees_all_equal_structs(lora.joined(trained, frozen), tree)


def test_adapters_are_sharded_like_their_kernels(adapters: Any) -> None:
    """Axes that an adapter shares with its kernel are cut in the same way; the rank never is."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 2}, jax.devices()[:4])
    layers = placement.parameter_specs({"lm": adapters}, mesh)["lm"]["layers"]
    expected = {
        "q": ((None, "fsdp", None), (None, None, "tensor", None)),
        "k": ((None, "fsdp", None), (None, None, "tensor", None)),
        "v": ((None, "fsdp", None), (None, None, "tensor", None)),
        "o": ((None, "tensor", None, None), (None, None, "fsdp")),
        "gate": ((None, "fsdp", None), (None, None, "tensor")),
        "up": ((None, "fsdp", None), (None, None, "tensor")),
        "down": ((None, "tensor", None), (None, None, "fsdp")),
    }
    found = {name: (tuple(x["lora_a"]), tuple(x["lora_b"])) for name, x in layers.items()}
    assert found == expected


def test_bfloat16_kernels_are_merged_in_float32(params: Any, adapters: Any) -> None:
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["lm"])
    exact = by_hand(
        {"lm": jax.tree.map(lambda x: x.astype(jnp.float32), base)}, adapters, ALL.scale
    )
    merged = lora.merged(base, adapters, ALL.scale)
    kernel = merged["layers"]["q"]["kernel"]
    expected = exact["layers"]["q"]["kernel"].astype(jnp.bfloat16)
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(kernel, np.float32), np.asarray(expected, np.float32), rtol=2**-7
    )


def test_a_rank_or_a_target_that_does_not_fit_is_refused(params: Any) -> None:
    layers = params["lm"]["layers"]
    with pytest.raises(UserError, match="lora.rank is 13, more than the smaller side .* 'q'.* 12"):
        Lora(13, 1.0, ("q", "o")).check_rank(layers)
    Lora(12, 1.0, ("q", "o")).check_rank(layers)
    with pytest.raises(UserError, match="names 'qkv'; choose from q,k,v,o,gate,up,down"):
        Lora(2, 1.0, ("q", "qkv"))
    with pytest.raises(UserError, match="lora.targets"):
        Lora(2, 1.0, ())
