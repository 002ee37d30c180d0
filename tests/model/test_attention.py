"""Back ends of attention against the plain one: the TPU's kernels interpreted, cuDNN's arguments by XLA."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.model import attention, attention_cudnn, attention_splash, attention_xla
from fqs_jax.objectives import plain, quiet_star
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.planning import topologies
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import Thinker, ThoughtConfig
from tests import tiny_models

B, N, G, H = 2, 4, 2, 8
TOLERANCE = {"float32": 2e-6, "bfloat16": 0.02}


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> jax.Array:
    values = np.random.default_rng((seed, *shape)).normal(size=shape)
    return jnp.asarray(values, dtype)


def segments(kind: str, length: int) -> jax.Array | None:
    """Rows that are padded on the right, or packed of several documents."""
    if kind == "none":
        return None
    place = np.arange(length)
    if kind == "padded":
        return jnp.asarray(place < np.array([[length], [length // 2 + 1]]))
    return 1 + jnp.asarray([place * 3 // length, place // (length - 5)], jnp.int32)


def read(kind: str, length: int) -> np.ndarray:
    """The queries whose results are used, [B, T]."""
    found = segments(kind, length)
    real = found is not None and found.dtype == bool
    return np.asarray(found) if real else np.ones((B, length), bool)


def both(
    function: Any, arrays: tuple[jax.Array, ...], weight: jax.Array, backend: str
) -> list[np.ndarray]:
    """Output and gradients of sum(weight * output), float32."""

    @jax.jit
    def run(*arrays: jax.Array) -> Any:
        output, pull = jax.vjp(lambda *xs: function(*xs, backend), *arrays)
        return output, *pull((weight * jnp.cos(output.astype(jnp.float32))).astype(output.dtype))

    return [np.asarray(x, np.float32) for x in run(*arrays)]


def check(found: list[np.ndarray], expected: list[np.ndarray], weight: Any, dtype: str) -> None:
    found[0], expected[0] = found[0] * (weight != 0), expected[0] * (weight != 0)
    for left, right in zip(found, expected, strict=True):
        scale = np.abs(right).max()
        np.testing.assert_allclose(left, right, atol=TOLERANCE[dtype] * scale, rtol=0)


@pytest.mark.parametrize(
    ("length", "window", "kind", "dtype"),
    [
        (128, None, "none", "float32"),
        (150, None, "padded", "float32"),
        (150, 20, "packed", "float32"),
        (300, 140, "padded", "bfloat16"),
    ],
)
def test_splash_over_text(length: int, window: int | None, kind: str, dtype: str) -> None:
    """Lengths that fill tiles and that do not, two kv heads for four query heads."""
    shapes = (B, length, N, H), (B, length, G, H), (B, length, G, H)
    arrays = tuple(random(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    weight = jnp.asarray(read(kind, length))[:, :, None, None] * random(B, length, N, H, seed=9)

    def run(query: Any, key: Any, value: Any, backend: str) -> jax.Array:
        where = segments(kind, length)
        return attention.causal(query, key, value, where, window, backend)

    check(both(run, arrays, weight, "splash"), both(run, arrays, weight, "xla"), weight, dtype)


@pytest.mark.parametrize(
    ("window", "kind", "dtype"),
    [
        (None, "none", "float32"),
        (None, "packed", "float32"),
        (9, "padded", "float32"),
        (3, "none", "bfloat16"),
    ],
)
def test_splash_over_blocks(window: int | None, kind: str, dtype: str) -> None:
    """Two blocks of five slots at each of 37 positions, 370 queries: blocks cross tiles; a window that
    is shorter than a block."""
    T, R, M = 37, 2, 5
    own = [(B, T, R * M, heads, H) for heads in (N, G, G)]
    shapes = (*own, (B, T, G, H), (B, T, G, H))
    arrays = tuple(random(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    weight = jnp.asarray(read(kind, T))[:, :, None, None, None] * random(*own[0], seed=9)

    def run(*arguments: Any) -> jax.Array:
        q, k, v, text_k, text_v, backend = arguments
        where = segments(kind, T)
        return attention.blocks(q, k, v, text_k, text_v, M, where, window, backend)

    check(both(run, arrays, weight, "splash"), both(run, arrays, weight, "xla"), weight, dtype)


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_the_thinking_loss_is_the_same(packed: bool) -> None:
    """Text pass and blocks by the kernels: padding queries, which differ, are in no loss and no
    gradient."""
    thought = ThoughtConfig(n_ahead=4, n_ahead_talk=2, rationales=2, temperature=0.0)
    tokens, mask = tiny_models.texts((11, 7), 11)
    batch = {"tokens": tokens, "mask": mask}
    if packed:
        batch["segment"] = jnp.where(mask, 1 + (jnp.arange(11) >= 4), 0).astype(jnp.int32)
    plain = tiny_models.model_config(attention="xla", sliding_window=8)
    params = tiny_models.random_params(plain)
    config = QuietStarConfig(policy_weight=1.0, advantage="leave_one_out")

    def run(backend: str) -> Any:
        model = dataclasses.replace(plain, attention=backend)
        loss = jax.value_and_grad(quiet_star.quiet_star_loss, has_aux=True)
        return jax.jit(loss, static_argnums=(3, 4))(
            params, batch, jax.random.key(0), Thinker(model, thought), config
        )

    (found, metrics), gradients = run("splash")
    (expected, plain_metrics), plain_gradients = run("xla")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name, value in plain_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    other = tiny_models.flat(plain_gradients)
    for name, gradient in tiny_models.flat(gradients).items():
        np.testing.assert_allclose(
            gradient, other[name], atol=1e-4 * np.abs(other[name]).max(), err_msg=name
        )


def test_splash_skips_what_nobody_sees() -> None:
    """512 positions with blocks of 4: a tile of queries reads the text up to it and its own tile."""
    mask = attention_splash.BlocksMask(512, None, 2048, 4, 4)
    tiles = attention_splash._kernel(mask, 128, True).fwd_mask_info.block_mask
    text = sum(1 + first // 512 for first in range(0, 2048, 128))  # tiles of 128 text keys
    assert int((np.asarray(tiles) > 0).sum()) == text + 2048 // 128


@pytest.mark.parametrize("tensor", [1, 4])
def test_splash_on_several_devices(tensor: int) -> None:
    """Rows and heads cut over a mesh; two kv heads on four devices are repeated."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": tensor}, jax.devices()[: 2 * tensor])
    T = 40
    arrays = random(B, T, N, H), random(B, T, G, H, seed=1), random(B, T, G, H, seed=2)

    def loss(arrays: Any, backend: str) -> jax.Array:
        query, key, value = arrays
        where = segments("packed", T)
        return jnp.sum(jnp.sin(attention.causal(query, key, value, where, None, backend)))

    with jax.set_mesh(mesh):
        gradients = jax.jit(jax.grad(lambda arrays: loss(arrays, "splash")))(arrays)
    for found, expected in zip(gradients, jax.grad(lambda a: loss(a, "xla"))(arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("window", "kind"), [(None, "none"), (None, "padded"), (6, "padded")])
def test_cudnn_is_asked_for_the_same(window: int | None, kind: str) -> None:
    """The arguments that go to cuDNN, computed by XLA."""
    T = 24
    arrays = random(B, T, N, H), random(B, T, G, H, seed=1), random(B, T, G, H, seed=2)
    weight = jnp.asarray(read(kind, T))[:, :, None, None] * random(B, T, N, H, seed=9)

    def run(query: Any, key: Any, value: Any, backend: str) -> jax.Array:
        where = segments(kind, T)
        if backend == "xla":
            return attention.causal(query, key, value, where, window, backend)
        return attention_cudnn.causal(query, key, value, where, window, implementation="xla")

    check(both(run, arrays, weight, "cudnn"), both(run, arrays, weight, "xla"), weight, "float32")


def test_what_cudnn_does_not_take_goes_to_xla() -> None:
    half = random(B, 8, N, 64, dtype="bfloat16")
    assert attention_cudnn.supports(half, packed=False)
    assert not attention_cudnn.supports(half, packed=True)
    assert not attention_cudnn.supports(half.astype(jnp.float32), packed=False)
    assert not attention_cudnn.supports(random(B, 8, N, 256, dtype="bfloat16"), packed=False)
    assert not attention_cudnn.supports(random(B, 8, N, 20, dtype="bfloat16"), packed=False)


@pytest.mark.parametrize("packed", [False, True])
def test_only_rows_of_one_document_go_to_cudnn(
    monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """A padded batch does, a packed one does not; cuDNN has no way to keep its documents apart."""
    calls = []

    def fake(*arguments: Any) -> jax.Array:
        calls.append(arguments)
        return attention_xla.causal(*arguments)

    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(attention_cudnn, "causal", fake)
    tokens, mask = tiny_models.texts((11, 7), 11)
    batch = {"tokens": tokens, "mask": mask}
    if packed:
        batch["segment"] = jnp.where(mask, 1 + (jnp.arange(11) >= 4), 0).astype(jnp.int32)
    model = tiny_models.model_config(attention="cudnn", dtype="bfloat16")
    params = tiny_models.random_params(model)
    jax.eval_shape(lambda p: plain.next_token_loss(p, batch, jax.random.key(0), model), params)
    assert bool(calls) != packed


@pytest.mark.parametrize(("device", "backend"), [("tpu", "splash"), ("gpu", "xla"), ("cpu", "xla")])
def test_auto_goes_by_the_device(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    assert attention.choose("auto") == backend
    assert attention.choose("splash") == "splash"
    with jax.set_mesh(sharding.single_device()):  # of this CPU, whatever JAX would take
        assert attention.choose("auto") == "xla"


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(UserError, match="attention 'flash' is none of auto, xla, splash, cudnn"):
        dataclasses.replace(tiny_models.model_config(), attention="flash")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_splash_compiles_for_a_tpu_that_is_not_here() -> None:
    """Both uses, forward and backward, cut over a slice of four: the program calls the kernels."""
    _, devices = topologies.find("v5e:2x2")
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 2}, devices)
    T, S = 256, 10

    def loss(arrays: Any) -> jax.Array:
        query, key, value, own_q, own_k, own_v = arrays
        text = attention.causal(query, key, value, None, None)
        block = attention.blocks(own_q, own_k, own_v, key, value, 5, None, None)
        return jnp.sum(text.astype(jnp.float32)) + jnp.sum(block.astype(jnp.float32))

    text_shapes = [(B, T, heads, 64) for heads in (N, G, G)]
    own_shapes = [(B, T, S, heads, 64) for heads in (N, G, G)]
    # The kernels have no bfloat16 products of the precision that the other tests ask for.
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        assert attention.choose("auto") == "splash"
        arrays = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding.rows(shape, mesh))
            for shape in (*text_shapes, *own_shapes)
        ]
        program = jax.jit(jax.grad(loss)).lower(arrays).compile()
    assert (program.as_text() or "").count("tpu_custom_call") >= 4
