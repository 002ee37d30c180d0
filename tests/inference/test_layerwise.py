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
from fqs_jax.runs import loading
from fqs_jax.runtime import device_memory, sharding
from tests.tiny_models import model_config, random_params
from tests.tiny_runs import clock_config, save_stage

GEMMA = {"layer_types": ("sliding", "sliding", "full"), "sliding_window": 5, "num_layers": 4}
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "allowed": 15}


@pytest.mark.parametrize("changes", [{"num_layers": 3}, GEMMA | {"tied_embeddings": True}])
@pytest.mark.parametrize("settings", [SAMPLING, SAMPLING | {"temperature": 0.0}])
def test_steps_are_those_of_the_stacked_layers(
    changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    model = model_config(**changes)
    params, length_B = random_params(model), jnp.array([7, 3])
    tokens_BxT = np.random.default_rng(0).integers(0, 15, (2, 8))
    cursor = generation.prefill(params, tokens_BxT, length_B, model=model, room=8)
    both = []
    for own in (params, layerwise.parameters(params["lm"])):
        copy = jax.tree.map(jnp.copy, cursor)
        key, how = jax.random.key(1), settings | {"model": model, "thought": None, "first": 3}
        both.append([token_B for token_B, *_ in generation.steps(own, copy, key, 6, **how)])
    np.testing.assert_array_equal(both[0], both[1])
    assert len(set(np.ravel(both).tolist())) > 3


def test_hidden_states_and_caches_are_those_of_the_stacked_layers() -> None:
    model = model_config(**GEMMA)
    params, length_B = random_params(model), jnp.array([7, 3])
    tokens_BxT = np.random.default_rng(0).integers(0, 15, (2, 8))
    cursor = generation.prefill(params, tokens_BxT, length_B, model=model, room=8)
    how: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "allowed": 15}
    key = jax.random.key(1)
    token_B, _, _, ours = layerwise.step(
        layerwise.parameters(params["lm"]),
        layerwise.cursor(cursor),
        key,
        0,
        model=model,
        thought=None,
        **how,
    )
    theirs = decoding.extend(params, cursor, token_B, model)
    for name in ("key", "value"):
        stacked = jnp.stack(getattr(ours, name)).swapaxes(2, 3)
        np.testing.assert_allclose(stacked, getattr(theirs, name), atol=1e-5)
    np.testing.assert_allclose(ours.hidden_BxD, theirs.hidden_BxD, atol=1e-5)
    np.testing.assert_array_equal(ours.length_B, theirs.length_B)


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
        results = generation.generate(loaded[name], ["0 1", "2"], 4, temperature=1.0, think=think)
        return [result.tokens for result in results]

    original = layerwise.step
    monkeypatch.setattr(layerwise, "step", step)
    small = generate("plain")
    assert not taken
    monkeypatch.setattr(layerwise, "LEAST_BYTES", 1)
    assert generate("plain") == small and taken
    generate("thinks")
    assert not taken
    generate("thinks", think=False)
    assert taken
    monkeypatch.setattr(device_memory, "free", lambda device: 1)
    assert generate("plain") == small and not taken


def test_layers_stay_together_on_several_devices(
    loaded: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "LEAST_BYTES", 1)
    assert layerwise.pays(loaded["plain"], 9) and not layerwise.pays(loaded["plain"], 1)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    assert not layerwise.pays(dataclasses.replace(loaded["plain"], mesh=mesh), 9)
