"""The parts of attention against one dense softmax, and their merge."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.model import attention_xla

B, T, N, G, H = 2, 7, 4, 2, 6
MASK = jnp.array([[True] * 7, [True] * 4 + [False] * 3])
SLOTS = np.array([1, 2, 5])


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), jnp.float32)


def dense(query: Any, key: Any, value: Any, visible: Any) -> tuple[np.ndarray, np.ndarray]:
    """Queries [B, Q, N, H] over keys [B, J, G, H] where visible [B, Q, J]: output and log-sum-exp.

    Zeros and -inf where nothing is visible.
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    head = np.arange(query.shape[2]) // (query.shape[2] // key.shape[2])
    scores = np.einsum("bqnh,bjnh->bqnj", query, key[:, :, head]) / np.sqrt(query.shape[-1])
    weights = np.where(np.asarray(visible)[:, :, None], np.exp(scores), 0.0)
    total = weights.sum(-1)
    with np.errstate(divide="ignore"):
        output = np.einsum("bqnj,bjnh->bqnh", weights, value[:, :, head])
        return output / np.maximum(total, 1e-300)[..., None], np.log(total)


def sees_text(index: Any, slots: Any, mask: Any, window: int | None) -> np.ndarray:
    """[B, P, S, T]: queries `slots` behind text positions index [B, P]."""
    distance = np.asarray(index)[:, :, None, None] - np.arange(T)
    visible = (distance >= 0) & (distance + np.asarray(slots)[:, None] < (window or 99))
    return visible if mask is None else visible & np.asarray(mask)[:, None, None]


def check(part: Any, query: Any, key: Any, value: Any, visible: np.ndarray) -> None:
    """Queries [B, P, S, N, H] whose keys are all text."""
    places = query.shape[:3]
    output, lse = dense(
        query.reshape(B, -1, N, H),
        key,
        value,
        np.broadcast_to(visible, (*places, T)).reshape(B, -1, T),
    )
    output, lse = output.reshape(*places, N, H), lse.reshape(*places, N)
    assert part[1].dtype == jnp.float32 and part[0].shape == output.shape
    seen = np.isfinite(lse)
    np.testing.assert_allclose(np.asarray(part[0])[seen], output[seen], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(part[1])[seen], lse[seen], rtol=1e-4, atol=1e-5)
    assert (np.asarray(part[1])[~seen] < -1e20).all()  # merges as nothing


@pytest.mark.parametrize(
    ("chunk", "window", "masked"),
    [(64, None, False), (3, None, True), (3, 2, True), (2, 4, False), (7, 5, True)],
)
def test_text_at_every_position(
    monkeypatch: pytest.MonkeyPatch, chunk: int, window: int | None, masked: bool
) -> None:
    """Query chunks that divide the text and that do not, windows that span one chunk and two."""
    monkeypatch.setattr(attention_xla, "QUERY_CHUNK", chunk)
    mask = MASK if masked else None
    query, key, value = random(B, T, 3, N, H), random(B, T, G, H), random(B, T, G, H, seed=1)

    @jax.jit
    def run(query: jax.Array) -> Any:
        part = attention_xla.aligned_text(query, key, value, jnp.array(SLOTS), mask, window)
        return part, attention_xla.causal(query[:, :, 0], key, value, mask, window)

    part, output = run(query)
    everywhere = np.broadcast_to(np.arange(T), (B, T))
    check(part, query, key, value, sees_text(everywhere, SLOTS, mask, window))

    visible = sees_text(everywhere, [0], mask, window)
    expected, lse = dense(query[:, :, 0], key, value, np.broadcast_to(visible[:, :, 0], (B, T, T)))
    seen = np.isfinite(lse)
    np.testing.assert_allclose(np.asarray(output)[seen], expected[seen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_text_at_chosen_positions(window: int | None, masked: bool) -> None:
    mask = MASK if masked else None
    index = jnp.array([[6, 0, 3], [2, 2, 5]])
    query, key, value = random(B, 3, 3, N, H), random(B, T, G, H), random(B, T, G, H, seed=1)
    part = attention_xla.indexed_text(query, key, value, index, jnp.array(SLOTS), mask, window)
    check(part, query, key, value, sees_text(index, SLOTS, mask, window))


@pytest.mark.parametrize("window", [None, 3])
def test_slots_of_a_block(window: int | None) -> None:
    C, M = 5, 6
    query, key, value = random(C, M, N, H), random(C, M, G, H), random(C, M, G, H, seed=1)
    visible = np.tril(np.ones((M, M), bool)) & ~np.tril(np.ones((M, M), bool), -(window or M))
    np.testing.assert_array_equal(attention_xla.causal_slots(M, window), visible)
    output, lse = attention_xla.own_slots(query, key, value, jnp.array(visible))
    expected = dense(query, key, value, np.broadcast_to(visible, (C, M, M)))
    np.testing.assert_allclose(output, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-4, atol=1e-5)


@jax.jit
def halves(query: jax.Array, key: jax.Array, value: jax.Array, first: jax.Array) -> Any:
    """Merged attention over the keys in `first` [S, M] and over the others, and its gradients."""

    def merged(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        part = attention_xla.own_slots(query, key, value, first)
        return attention_xla.merge(part, attention_xla.own_slots(query, key, value, ~first))

    output, pull = jax.vjp(merged, query, key, value)
    return output, pull(jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape))


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.sampled_from([0.1, 1.0, 30.0]))
def test_merge_is_one_softmax_however_the_keys_are_split(
    split: list[bool], sharpness: float
) -> None:
    """Parts without any key among them, and scores far apart."""
    query = sharpness * random(3, 2, N, H)
    key, value = random(3, 6, G, H), random(3, 6, G, H, seed=1)
    first = jnp.array(split).reshape(2, 6)
    output, gradients = halves(query, key, value, first)
    expected, _ = dense(query, key, value, np.ones((3, 2, 6), bool))
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-5)
    _, unsplit = halves(query, key, value, jnp.ones((2, 6), bool))
    for split_gradient, gradient in zip(gradients, unsplit, strict=True):
        scale = float(jnp.max(jnp.abs(gradient)))
        np.testing.assert_allclose(split_gradient, gradient, atol=2e-4 * scale)


def test_bfloat16_keeps_its_softmax_in_float32() -> None:
    """600 equal keys: in bfloat16 their sum would stop at 256."""
    query = jnp.zeros((1, 1, 1, 1, 2), jnp.bfloat16)
    key = jnp.zeros((1, 600, 1, 2), jnp.bfloat16)
    value = jnp.ones((1, 600, 1, 2), jnp.bfloat16)
    index, slot = jnp.array([[599]]), jnp.zeros(1, jnp.int32)
    output, lse = attention_xla.indexed_text(query, key, value, index, slot, None, None)
    assert output.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(lse, np.log(600), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(output, np.float32), 1.0, rtol=1e-2)


@pytest.mark.parametrize("window", [None, 40])
def test_bfloat16_gradients_are_those_of_a_float32_softmax(window: int | None) -> None:
    """The gradient of `causal`, written by hand, against that of a naive softmax in float32 of the
    same bfloat16 inputs; 100 text positions are two chunks of queries, one cut short."""
    length, size = 100, 16
    shapes = (B, length, N, size), (B, length, G, size), (B, length, G, size)
    arrays = tuple(
        random(*shape, seed=i).astype(jnp.bfloat16) for i, shape in enumerate((*shapes, shapes[0]))
    )
    distance = np.arange(length)[:, None] - np.arange(length)
    visible = jnp.asarray((distance >= 0) & (distance < (window or length)))

    def naive(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        key, value = (jnp.repeat(x, N // G, axis=2) for x in (key, value))
        scores = jnp.einsum("bqnh,bjnh->bnqj", query, key) / np.sqrt(size)
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bnqj,bjnh->bqnh", weights, value)

    def gradients(function: Any, dtype: Any) -> Any:
        *inputs, cotangent = (x.astype(dtype) for x in arrays)
        output, pull = jax.vjp(function, *inputs)
        return output, *pull(cotangent)

    ours = jax.jit(
        lambda: gradients(lambda q, k, v: attention_xla.causal(q, k, v, None, window), jnp.bfloat16)
    )()
    for found, expected in zip(ours, jax.jit(lambda: gradients(naive, jnp.float32))(), strict=True):
        assert found.dtype == jnp.bfloat16
        error = jnp.abs(found.astype(jnp.float32) - expected)
        # bfloat16 keeps 8 bits: 2^-8 of the largest is one rounding of it.
        assert float(error.max()) < 4 * 2**-8 * float(jnp.abs(expected).max())
        assert float(jnp.sqrt(jnp.mean(error**2) / jnp.mean(expected**2))) < 2**-7
