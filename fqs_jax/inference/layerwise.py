"""Plain generation on CPUs, with a call of a compiled program for each layer.

In a loop over stacked layers, XLA's CPU programs copy every layer's weights out of their stack before they
multiply by them. One row has so little to compute that this is 40 % of a token's time. Here each layer has
arrays of its own, whose kernels lie as products of few rows read them fastest (model/dense.py). One program
with all of them would take several times longer to compile.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fqs_jax.inference import decoding
from fqs_jax.model import decoder, dense
from fqs_jax.model.config import Layer, ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import device_memory

LEAST_BYTES = 2**26  # of all layers; below it, calls cost more than copies


class Apart(NamedTuple):
    """Parameters of a decoder: each layer's, with a leading axis of 1, and the rest.

    rest: embed, final_norm and the head outputs first, which is the embedding table if it is tied.
    """

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
    """The parameters with a copy of each layer, and of a head that is not tied; None if that does not pay.

    It pays on one CPU, for a model that is large, yet leaves half of the free memory free with its copy.
    """
    device, layers = mesh.devices.flat[0], lm["layers"]
    room, size = device_memory.free(device), device_memory.of_arrays(layers)
    copied = size + device_memory.of_arrays(lm.get("head", {}))
    fits = room is None or copied < room / 2
    if mesh.size > 1 or device.platform != "cpu" or size < LEAST_BYTES or not fits:
        return None
    head_VxD = lm["head"]["kernel"].T if "head" in lm else lm["embed"]["embedding"]
    head = {dense.OUTPUTS_FIRST: head_VxD}
    rest = {"embed": lm["embed"], "final_norm": lm["final_norm"], "head": head}
    count = len(jax.tree.leaves(layers)[0])
    return Apart([_layer_of(layers, i) for i in range(count)], rest)


@jax.jit
def _layer_of(stacked: Params, i: int) -> Params:
    layer = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), stacked)
    return jax.tree.map(lambda x: x[None], dense.outputs_first(layer))


def prefill(
    params: Apart,
    tokens_BxT: jax.Array | np.ndarray,
    length_B: jax.Array,
    model: ModelConfig,
    room: int,
) -> LayerCursor:
    """Read prompts; see `decoding.prefill`."""
    hidden_BxTxD = _embed(params.rest, tokens_BxT, config=model)
    keys, values = [], []
    for layer, kind in zip(params.layers, _kinds(model, len(params.layers)), strict=True):
        hidden_BxTxD, key, value = _read(layer, hidden_BxTxD, model=model, kind=kind, room=room)
        keys.append(key)
        values.append(value)
    hidden_BxD = _last(params.rest, hidden_BxTxD, length_B, model=model)
    return LayerCursor(keys, values, length_B, hidden_BxD)


def step(
    params: Apart,
    cursor: LayerCursor,
    key: jax.Array,
    step: Any,
    *,
    model: ModelConfig,
    thought: None,
    **settings: Any,
) -> tuple[decoding.Choice, LayerCursor]:
    """Choose the next token of every row and append it; see `decoding.choose`.

    Returns:
      The tokens, without thoughts, and the cursor behind the tokens.
    """
    assert thought is None
    keys, values, length_B = [], [], cursor.length_B
    choice, hidden_Bx1xD = _begin(
        params.rest, cursor.hidden_BxD, length_B, key, step, model=model, **settings
    )
    kinds = _kinds(model, len(params.layers))
    for layer, kind, *caches in zip(params.layers, kinds, cursor.key, cursor.value, strict=True):
        hidden_Bx1xD, key, value = _append(
            layer, hidden_Bx1xD, *caches, length_B, model=model, kind=kind
        )
        keys.append(key)
        values.append(value)
    hidden_BxD, length_B = _end(params.rest, hidden_Bx1xD, length_B, model=model)
    return choice, LayerCursor(keys, values, length_B, hidden_BxD)


def _kinds(model: ModelConfig, count: int) -> list[Layer]:
    return [model.period[i % len(model.period)] for i in range(count)]


_embed = jax.jit(decoder.embed, static_argnames="config")


@functools.partial(jax.jit, static_argnames=("model", "kind", "room"))
def _read(layer, hidden_BxTxD, *, model, kind, room):  # type: ignore[no-untyped-def]
    """A prompt through one layer, and its keys and values in caches."""
    positions_1xT, attend = jnp.arange(hidden_BxTxD.shape[1])[None], decoder.causal_attention(model)
    hidden_BxTxD, new = decoder.run_blocks(
        layer, hidden_BxTxD, positions_1xT, attend, model, None, (kind,)
    )
    padding = [(0, 0), (0, 0), (0, room), (0, 0)]
    caches = (jnp.pad(x[0].swapaxes(1, 2), padding) for x in new)
    return hidden_BxTxD, *caches


@functools.partial(jax.jit, static_argnames="model")
def _last(rest, hidden_BxTxD, length_B, *, model):  # type: ignore[no-untyped-def]
    index_Bx1x1 = (length_B - 1)[:, None, None]
    hidden_Bx1xD = jnp.take_along_axis(hidden_BxTxD, index_Bx1x1, axis=1)
    return decoder.final_norm(rest, hidden_Bx1xD, model)[:, 0]


@functools.partial(jax.jit, static_argnames=("model", "temperature", "top_p", "allowed", "scored"))
def _begin(  # type: ignore[no-untyped-def]
    rest, hidden_BxD, length_B, key, step, *, model, **settings
):
    """Choose the tokens, and look up their embeddings."""
    no_caches = jnp.zeros(0)
    cursor = decoding.Cursor(no_caches, no_caches, length_B, hidden_BxD)
    choice = decoding.choose({"lm": rest}, cursor, key, step, model=model, thought=None, **settings)
    return choice, decoder.embed(rest, choice.token_B[:, None], model)


@functools.partial(
    jax.jit, static_argnames=("model", "kind"), donate_argnames=("key_BxGxTxH", "value_BxGxTxH")
)
def _append(  # type: ignore[no-untyped-def]
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
