"""Plain generation on CPUs, with a call of a compiled program for each layer.

In a loop over stacked layers, XLA's CPU programs copy every layer's weights out of their stack before they
multiply by them. One row has so little to compute that this is 40 % of a token's time. Here each layer has
arrays of its own. One program with all of them would take several times longer to compile.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fqs_jax.inference import decoding
from fqs_jax.inference.decoding import Cursor
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import device_memory

LEAST_BYTES = 2**26  # of all layers; below it, calls cost more than copies
LEAST_TOKENS = 4  # to generate; for fewer, taking the caches apart costs more than it gains


class Apart(NamedTuple):
    """Parameters of a decoder: each layer's, with a leading axis of 1, and the rest (embed, norm, head)."""

    layers: list[Params]
    rest: Params


class LayerCursor(NamedTuple):
    """`decoding.Cursor` with the caches of each layer in arrays of their own.

    They are [B, G, Tmax, H], as attention multiplies by them: no token needs a transposed copy.
    """

    key: list[jax.Array]
    value: list[jax.Array]
    length_B: jax.Array
    hidden_BxD: jax.Array


def parameters(lm: Params, mesh: Mesh) -> Apart | None:
    """The parameters with a copy of each layer's; None if that does not pay.

    It pays on one CPU, for a model that is large, yet fits in memory twice.
    """
    size = device_memory.of_arrays(lm["layers"])
    if mesh.size > 1 or size < LEAST_BYTES or not _fits(size, mesh):
        return None
    rest = {name: part for name, part in lm.items() if name != "layers"}
    return Apart(_apart(lm["layers"]), rest)


def pays(stacked: Cursor, tokens: int, mesh: Mesh) -> bool:
    """True if a batch is worth a copy of its caches, and there is memory for it.

    Args:
      tokens: the most that are generated of a row.
    """
    caches = device_memory.of_arrays((stacked.key, stacked.value))
    return tokens >= LEAST_TOKENS and _fits(caches, mesh)


def cursor(stacked: Cursor) -> LayerCursor:
    """The state of generation behind `decoding.prefill`, whose caches are copied and deleted."""
    caches = stacked.key, stacked.value
    key, value = ([x[0].swapaxes(1, 2) for x in _apart(cache)] for cache in caches)
    for cache in caches:
        cache.delete()
    return LayerCursor(key, value, stacked.length_B, stacked.hidden_BxD)


def _fits(size: int, mesh: Mesh) -> bool:
    """True if the mesh is a CPU's, and a copy of `size` bytes leaves half of the free memory free."""
    device = mesh.devices.flat[0]
    room = device_memory.free(device)
    return device.platform == "cpu" and (room is None or size < room / 2)


def _apart(stacked: Any) -> list[Any]:
    """A tree of arrays [L, ...] as L trees of arrays [1, ...]."""
    leaves, structure = jax.tree.flatten(stacked)
    parts = [jnp.split(leaf, len(leaf)) for leaf in leaves]
    return [jax.tree.unflatten(structure, part) for part in zip(*parts, strict=True)]


def step(
    params: Apart,
    cursor: LayerCursor,
    key: jax.Array,
    step: Any,
    *,
    model: ModelConfig,
    thought: None,
    **settings: Any,
) -> tuple[jax.Array, jax.Array, jax.Array, LayerCursor]:
    """Choose the next token of every row and append it; see `decoding.choose`.

    Returns:
      int32 tokens [B], no thoughts [B, 0] and weights [B], and the cursor behind the tokens.
    """
    assert thought is None
    emitted, hidden_Bx1xD = _begin(
        params.rest, cursor.hidden_BxD, cursor.length_B, key, step, model=model, **settings
    )
    keys, values, period = [], [], model.period
    for i, layer in enumerate(params.layers):
        hidden_Bx1xD, new_key, new_value = _layer(
            layer,
            hidden_Bx1xD,
            cursor.key[i],
            cursor.value[i],
            cursor.length_B,
            model=model,
            kind=period[i % len(period)],
        )
        keys.append(new_key)
        values.append(new_value)
    hidden_BxD, length_B = _end(params.rest, hidden_Bx1xD, cursor.length_B, model=model)
    return *emitted, LayerCursor(keys, values, length_B, hidden_BxD)


@functools.partial(jax.jit, static_argnames=("model", "temperature", "top_p", "allowed"))
def _begin(  # type: ignore[no-untyped-def]
    rest, hidden_BxD, length_B, key, step, *, model, temperature, top_p, allowed, first=0
):
    """Choose the tokens, and look up their embeddings."""
    no_caches = jnp.zeros(0)
    emitted = decoding.choose(
        {"lm": rest},
        Cursor(no_caches, no_caches, length_B, hidden_BxD),
        key,
        step,
        model=model,
        thought=None,
        temperature=temperature,
        top_p=top_p,
        allowed=allowed,
        first=first,
    )
    return emitted, decoder.embed(rest, emitted[0][:, None], model)


@functools.partial(
    jax.jit, static_argnames=("model", "kind"), donate_argnames=("key_BxGxTxH", "value_BxGxTxH")
)
def _layer(  # type: ignore[no-untyped-def]
    layer, hidden_Bx1xD, key_BxGxTxH, value_BxGxTxH, length_B, *, model, kind
):
    """A token through one layer, and its key and value into the caches."""
    stored = key_BxGxTxH, value_BxGxTxH
    caches = tuple(x.swapaxes(1, 2)[None] for x in stored)
    hidden_Bx1xD, new = decoding.through_layers(
        layer, hidden_Bx1xD, caches, length_B, model, (kind,)
    )
    rows_B = jnp.arange(length_B.shape[0])
    written = (x.at[rows_B, :, length_B].set(y[0]) for x, y in zip(stored, new, strict=True))
    return hidden_Bx1xD, *written


@functools.partial(jax.jit, static_argnames="model")
def _end(rest, hidden_Bx1xD, length_B, *, model):  # type: ignore[no-untyped-def]
    return decoder.final_norm(rest, hidden_Bx1xD, model)[:, 0], length_B + 1
