"""The dense layer with its kernel in the form outputs first, beside flax's own layer."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.model import dense

KEY = jax.random.key(0)


@pytest.mark.parametrize("rows", [1, 3, 64, 65])
def test_products_of_few_and_of_many_rows(rows: int) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(rows, 5)), rng.normal(size=(7, 5))
    found = jax.jit(dense.product)(jnp.asarray(x), jnp.asarray(kernel))
    rounded = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    assert dense.product(*rounded).dtype == jnp.bfloat16
    assert dense.product(*rounded, jnp.float32).dtype == jnp.float32
    np.testing.assert_allclose(found, x @ kernel.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 70])
@pytest.mark.parametrize(
    "name, features, axis, inputs",
    [("q", (2, 3), -1, (5,)), ("o", 5, (-2, -1), (2, 3)), ("down", 5, -1, (7,))],
)
@pytest.mark.parametrize("settings", [{}, {"use_bias": False}, {"dtype": jnp.bfloat16}])
def test_the_layer_is_that_of_flax(
    name: str, features: Any, axis: Any, inputs: tuple[int, ...], rows: int, settings: Any
) -> None:
    x = jax.random.normal(KEY, (rows, *inputs))
    given = {"features": features, "axis": axis, "dtype": jnp.float32} | settings
    bias = nn.initializers.normal(1.0)
    theirs = nn.DenseGeneral(**given, bias_init=bias)
    params = theirs.init(KEY, x)["params"]
    kept = dense.outputs_first({name: params})[name]
    assert kept[dense.OUTPUTS_FIRST].shape == (np.prod(features), np.prod(inputs))
    assert "kernel" not in kept and ("bias" in kept) == settings.get("use_bias", True)
    found: Any = dense.Dense(**given).apply({"params": kept}, x)
    expected: Any = theirs.apply({"params": params}, x)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    # The sums are rounded to bfloat16 in another order: to 1/128 of numbers up to 4.
    rtol, atol = (2**-7, 2**-6) if given["dtype"] == jnp.bfloat16 else (0.0, 1e-5)
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected.astype(jnp.float32), rtol=rtol, atol=atol
    )
