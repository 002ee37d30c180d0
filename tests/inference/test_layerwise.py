"""Generation with layers apart, beside the one program that scans over them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.inference import decoding, generation, layerwise
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import decoder
from fqs_jax.runs import loading
from fqs_jax.runtime import device_memory, sharding
from tests.tiny_models import model_config, random_params
from tests.tiny_runs import clock_config, save_stage

GEMMA = {"layer_types": ("sliding", "sliding", "full"), "sliding_window": 5, "num_layers": 4}
MESH = sharding.single_device()
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "allowed": 15}


@pytest.fixture(autouse=True)
def small_models_are_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "LEAST_BYTES", 1)


@pytest.mark.parametrize("changes", [{"num_layers": 3}, GEMMA | {"tied_embeddings": True}])
@pytest.mark.parametrize("settings", [SAMPLING, SAMPLING | {"temperature": 0.0}])
def test_steps_are_those_of_the_stacked_layers(
    changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    model = model_config(**changes)
    params, length_B = random_params(model), jnp.array([7, 3])
    tokens_BxT = np.random.default_rng(0).integers(0, 15, (2, 8))
    apart = layerwise.parameters(params["lm"], MESH)
    assert apart is not None
    key, how = jax.random.key(1), settings | {"model": model, "thought": None, "first": 3}
    sides: list[Any] = [(params, generation.prefill), (apart, layerwise.prefill)]
    both = []
    for own, prefill in sides:
        cursor = prefill(own, tokens_BxT, length_B, model=model, room=8)
        both.append([token_B for token_B, *_ in generation.steps(own, cursor, key, 6, **how)])
    np.testing.assert_array_equal(both[0], both[1])
    assert len(set(np.ravel(both).tolist())) > 3


@pytest.mark.parametrize("rows, tokens", [(2, 8), (9, 8)])  # few rows to multiply, and many
def test_hidden_states_and_caches_are_those_of_the_stacked_layers(rows: int, tokens: int) -> None:
    model = model_config(**GEMMA, qkv_bias=True, o_bias=True)
    params, length_B = random_params(model), jnp.arange(rows) % (tokens - 1) + 1
    tokens_BxT = np.random.default_rng(0).integers(0, 15, (rows, tokens))
    apart = layerwise.parameters(params["lm"], MESH)
    assert apart is not None

    def check(ours: layerwise.LayerCursor, theirs: decoding.Cursor) -> None:
        for name in ("key", "value"):
            stacked = jnp.stack(getattr(ours, name)).swapaxes(2, 3)
            np.testing.assert_allclose(stacked, getattr(theirs, name), atol=1e-5)
        np.testing.assert_allclose(ours.hidden_BxD, theirs.hidden_BxD, atol=1e-5)
        np.testing.assert_array_equal(ours.length_B, theirs.length_B)

    ours = layerwise.prefill(apart, tokens_BxT, length_B, model=model, room=8)
    theirs = generation.prefill(params, tokens_BxT, length_B, model=model, room=8)
    check(ours, theirs)
    how: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "allowed": 15, "thought": None}
    (token_B, *_), ours = layerwise.step(apart, ours, jax.random.key(1), 0, model=model, **how)
    check(ours, decoding.extend(params, theirs, token_B, model))


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_bfloat16_models_are_float32(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded logits have ties that the model does not have."""
    model = model_config(tied_embeddings=tied, dtype="bfloat16")
    params = random_params(model)
    apart = layerwise.parameters(params["lm"], MESH)
    assert apart is not None
    hidden_BxD = jax.random.normal(jax.random.key(0), (3, model.width)).astype(jnp.bfloat16)
    seen: list[jax.Array] = []

    def pick(log_probs_BxV: jax.Array, *_: Any) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(x), log_probs_BxV)
        return jnp.zeros(3, jnp.int32)

    monkeypatch.setattr(decoding, "pick", pick)
    how: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "allowed": model.vocab_size}
    key = jax.random.key(1)
    layerwise._begin(apart.rest, hidden_BxD, jnp.full(3, 5), key, 0, model=model, **how)
    jax.effects_barrier()
    expected = jax.nn.log_softmax(decoder.head_logits(params["lm"], hidden_BxD))
    np.testing.assert_allclose(seen[0], expected, atol=1e-5)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("layerwise") / "W"
    for number in (0, 1):
        save_stage(root, clock_config({"model.num_layers": 2}), number)
    return {"plain": loading.load(str(root), "0"), "thinks": loading.load(str(root), "1")}


def test_generate_takes_layers_apart_where_it_pays(
    loaded: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a large model without thoughts on a CPU with room for it; texts stay the same."""
    taken: list[int] = []

    def step(*arguments: Any, **settings: Any) -> Any:
        taken.append(1)
        return original(*arguments, **settings)

    def generate(name: str, think: bool = True) -> Any:
        taken.clear()
        model = dataclasses.replace(loaded[name])  # no layers apart yet
        results = generation.generate(model, ["0 1", "2"], 4, temperature=1.0, think=think)
        return [result.tokens for result in results]

    original, least = layerwise.step, layerwise.LEAST_BYTES
    monkeypatch.setattr(layerwise, "step", step)
    monkeypatch.setattr(layerwise, "LEAST_BYTES", 2**26)
    small = generate("plain")
    assert not taken
    monkeypatch.setattr(layerwise, "LEAST_BYTES", least)
    assert generate("plain") == small and taken
    generate("thinks")
    assert not taken
    generate("thinks", think=False)
    assert taken
    monkeypatch.setattr(device_memory, "free", lambda device: 1)
    assert generate("plain") == small and not taken


def test_layers_are_copied_once(loaded: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    original = layerwise.parameters

    def parameters(*arguments: Any) -> Any:
        copies.append(1)
        return original(*arguments)

    monkeypatch.setattr(layerwise, "parameters", parameters)
    model = dataclasses.replace(loaded["plain"])  # no layers apart yet
    for rows in (["0 1"], ["0 1", "2"]):
        generation.generate(model, rows, 4)
    assert len(copies) == 1


def test_layers_stay_together_without_room_or_on_several_devices(
    loaded: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = loaded["plain"].params["lm"]
    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    assert layerwise.parameters(lm, mesh) is None
    assert "head" in lm  # it is copied too
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((lm["layers"], lm["head"])))
    monkeypatch.setattr(device_memory, "free", lambda device: 2 * size + 2)
    assert layerwise.parameters(lm, MESH) is not None
    monkeypatch.setattr(device_memory, "free", lambda device: 2 * size)
    assert layerwise.parameters(lm, MESH) is None
