"""Log-probabilities and draws in chunks against all at once and a plain log-softmax."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fqs_jax.model import vocab
from tests import jaxprs

B, X, D, V = 2, (5, 3), 4, 11
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(B, *X, D)), jnp.float32)
KERNEL = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)
IDS = jnp.asarray(RNG.integers(0, V, (B, *X)))
WEIGHTS = jnp.asarray(RNG.normal(size=(B, *X)), jnp.float32)  # of the gradients' sum
KEYS = jax.random.split(jax.random.key(0), (B, *X))

chunks = st.integers(0, 40)
temperatures = st.sampled_from([0.3, 1.0, 3.0])
masks = st.sets(st.integers(0, V - 1), max_size=3).map(lambda ids: tuple(sorted(ids)))
# Every chunk size, temperature and mask is compiled anew.
few = settings(max_examples=settings().max_examples // 4)


def plain_logits(hidden: jax.Array, kernel: jax.Array, masked_ids: tuple[int, ...]) -> jax.Array:
    return (hidden @ kernel).at[..., list(masked_ids)].set(-1e10) if masked_ids else hidden @ kernel


def value_and_gradients(function: Any, compiled: bool) -> Any:
    """Values at all tokens, and gradients of their weighted sum by hidden states and kernel."""

    def weighted(hidden: jax.Array, kernel: jax.Array) -> Any:
        values = function(hidden, kernel)
        return jnp.sum(WEIGHTS * values), values

    gradient = jax.grad(weighted, (0, 1), has_aux=True)
    gradients, values = (jax.jit(gradient) if compiled else gradient)(HIDDEN, KERNEL)
    return values, *gradients


def assert_same(ours: Any, plain: Any) -> None:
    pairs = zip(value_and_gradients(ours, True), value_and_gradients(plain, False), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@few
@given(chunks, temperatures, masks)
def test_log_probs(chunk: int, temperature: float, masked_ids: tuple[int, ...]) -> None:
    allowed = np.isin(IDS, masked_ids, invert=True)
    ids = jnp.where(allowed, IDS, min(set(range(V)) - set(masked_ids)))

    def plain(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(plain_logits(hidden, kernel, masked_ids) / temperature)
        return jnp.take_along_axis(log_p, ids[..., None], -1)[..., 0]

    how: dict[str, Any] = {"chunk": chunk, "temperature": temperature, "masked_ids": masked_ids}
    ours = functools.partial(vocab.log_probs, ids_BxX=ids, **how)
    assert_same(ours, plain)


@few
@given(chunks, temperatures)
def test_expected_log_probs(chunk: int, temperature: float) -> None:
    def plain(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        logits = hidden @ kernel
        p = jax.lax.stop_gradient(jax.nn.softmax(logits))
        return jnp.sum(p * jax.nn.log_softmax(logits / temperature), -1)

    def ours(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        read = functools.partial(vocab.expected_log_probs, temperature=temperature)
        return vocab.read(read, hidden, kernel, chunk=chunk)

    assert_same(ours, plain)


@functools.cache
def gumbel_noise() -> np.ndarray:
    """[B, *X, V], every token's from its own key."""
    noise = [jax.random.gumbel(KEYS[place], (V,), jnp.float32) for place in np.ndindex(B, *X)]
    return np.stack(noise).reshape(B, *X, V)


@few
@given(chunks, st.sampled_from([0.0, 0.3, 1.0]), masks)
def test_sample(chunk: int, temperature: float, masked_ids: tuple[int, ...]) -> None:
    """A draw is that of its own key, whatever the chunks."""
    draw = functools.partial(
        vocab.sample, chunk=chunk, temperature=temperature, masked_ids=masked_ids
    )
    ids, entropy = jax.jit(draw)(HIDDEN, KERNEL, KEYS)
    logits = plain_logits(HIDDEN, KERNEL, masked_ids) / (temperature or 1.0)
    noise = bool(temperature) * gumbel_noise()
    np.testing.assert_array_equal(ids, np.argmax(logits + noise, -1))
    assert ids.dtype == jnp.int32 and not np.isin(ids, masked_ids).any()
    log_p = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(entropy, -jnp.sum(jnp.exp(log_p) * log_p, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "row, expected",
    [
        ([1.0, 3.0, 3.0], 1),
        ([-math.inf, -math.inf, -2.0], 2),
        ([-math.inf, -math.inf, -math.inf], 0),
        ([1.0, 5.0, math.nan], 0),
    ],
)
def test_argmax(row: list[float], expected: int) -> None:
    assert vocab.argmax(jnp.array([row])).tolist() == [expected]


def test_draws_have_no_gradient() -> None:
    def entropy(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(vocab.sample(hidden, kernel, KEYS, chunk=0)[1])

    assert not any(gradient.any() for gradient in jax.grad(entropy, (0, 1))(HIDDEN, KERNEL))


def test_a_masked_id_is_as_good_as_impossible() -> None:
    ids = jnp.full((B, *X), 3)
    log_p = vocab.log_probs(HIDDEN, KERNEL, ids, chunk=0, masked_ids=(3,))
    np.testing.assert_allclose(log_p, -1e10, rtol=1e-6)


@pytest.mark.parametrize("chunk", [0, 4])
def test_bfloat16_is_read_off_in_float32(chunk: int) -> None:
    """Products of bfloat16 numbers, summed and normalised in float32."""
    hidden, kernel = HIDDEN.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16)
    ours = vocab.log_probs(hidden, KERNEL, IDS, chunk=chunk)
    exact = vocab.log_probs(
        hidden.astype(jnp.float32), kernel.astype(jnp.float32), IDS, chunk=chunk
    )
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)


@few
@given(chunks)
def test_read_several(chunk: int) -> None:
    """Logits of two hidden states at once, beside another array of the same tokens."""

    def ours(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        hiddens = hidden, 2.0 * hidden[..., ::-1]
        return vocab.read_several(overlap, hiddens, kernel, IDS, chunk=chunk)

    def plain(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        return overlap((hidden @ kernel, 2.0 * hidden[..., ::-1] @ kernel), IDS)

    assert_same(ours, plain)


def overlap(logits: tuple[jax.Array, ...], ids: jax.Array) -> jax.Array:
    p, q = (jax.nn.softmax(x) for x in logits)
    return ids * jnp.sum(p * q, -1)


def most_logits(function: Any) -> int:
    """The most tokens whose logits exist in one array of a program or of its gradient."""
    gradient = jax.grad(lambda h, k: jnp.sum(function(h, k)), (0, 1))
    shapes = [
        variable.aval.shape
        for equation, _ in jaxprs.equations(gradient, HIDDEN, KERNEL)
        for variable in equation.outvars
    ]
    return max(math.prod(shape) // V for shape in shapes if V in shape)


@pytest.mark.parametrize("chunk", [1, 7, 8, 29])
def test_no_more_logits_at_once_than_asked_for(chunk: int) -> None:
    """Neither in the forward pass nor in its gradient; at least one token of every row."""
    most = most_logits(functools.partial(vocab.log_probs, ids_BxX=IDS, chunk=chunk))
    assert most <= max(chunk, B, D)  # D rows: the kernel's gradient
    two = lambda h, k: vocab.read_several(overlap, (h, h), k, IDS, chunk=chunk)  # noqa: E731
    assert most_logits(two) <= max(chunk // 2 + 1, B, D)
