"""Random keys of thoughts: one for each row, text position and rationale."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def thought_keys(
    key: jax.Array, where_BxP: jax.Array, rationales: int, row_B: jax.Array | None = None
) -> jax.Array:
    """One key [B, P, R] a (row, text position, rationale): draws do not depend on who else thinks.

    Args:
      key: for all rows, or one for each row [B, 1, 1].
      row_B: number of each row in its batch, of which these may be a part; None = 0, 1, ...
    """
    B, P = where_BxP.shape
    row_B = jnp.arange(B) if row_B is None else row_B
    rows = fold_in_all(jnp.broadcast_to(key, (B, 1, 1)), row_B[:, None, None])
    places = fold_in_all(jnp.broadcast_to(rows, (B, P, 1)), where_BxP[..., None])
    return fold_in_all(jnp.broadcast_to(places, (B, P, rationales)), jnp.arange(rationales))


def fold_in_all(keys: jax.Array, data: jax.Array) -> jax.Array:
    """jax.random.fold_in elementwise over arrays that broadcast."""
    shape = jnp.broadcast_shapes(keys.shape, jnp.shape(data))
    flat = jax.vmap(jax.random.fold_in)(
        jnp.broadcast_to(keys, shape).reshape(-1), jnp.broadcast_to(data, shape).reshape(-1)
    )
    return flat.reshape(shape)
