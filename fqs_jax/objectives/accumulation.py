"""A sum over pieces, differentiated piece by piece, so that only one piece's activations exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# (differentiable, constant, piece) -> (loss, other results)
Piece = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


def summed(
    function: Piece,
    shared: Any,
    constant: Any,
    pieces: Any,
    placed: Callable[[Any], Any] = lambda gradients: gradients,
) -> tuple[jax.Array, Any]:
    """The sum of `function(shared, constant, piece)` over pieces, and its other results, stacked.

    Under differentiation each piece goes forward and backward before the next one starts, and only
    the sum of their gradients is stored, in float32. Nothing is computed twice.

    Args:
      shared: pytree of float arrays; the loss is differentiated with respect to them.
      constant: pytree of arrays that have no gradient.
      pieces: pytree of arrays with a leading axis, one element a piece, that have no gradient.
      placed: shards a tree of gradients, which is like `shared`.

    Returns:
      The loss, and the other results with a leading axis, which have no gradient.
    """

    @jax.custom_vjp
    def total(shared: Any, constant: Any, pieces: Any) -> tuple[jax.Array, Any]:
        losses, others = jax.lax.map(lambda piece: function(shared, constant, piece), pieces)
        return jnp.sum(losses), others

    def forward(shared: Any, constant: Any, pieces: Any) -> Any:
        gradient = jax.value_and_grad(function, has_aux=True)

        def add(gradients: Any, piece: Any) -> Any:
            result, more = gradient(shared, constant, piece)
            return placed(jax.tree.map(lambda g, m: g + m.astype(g.dtype), gradients, more)), result

        zeros = placed(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shared))
        gradients, (losses, others) = jax.lax.scan(add, zeros, pieces)
        gradients = jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, shared)
        return (jnp.sum(losses), others), (gradients, constant, pieces)

    def backward(residuals: Any, cotangents: Any) -> Any:
        gradients, constant, pieces = residuals
        gradients = jax.tree.map(lambda g: g * cotangents[0].astype(g.dtype), gradients)
        return gradients, jax.tree.map(_nothing, constant), jax.tree.map(_nothing, pieces)

    total.defvjp(forward, backward)
    return total(shared, constant, pieces)


def _nothing(x: jax.Array) -> Any:
    """The cotangent of an array without gradient."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
