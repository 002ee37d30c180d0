"""The choice of the code that computes attention of whole texts, and of blocks at all positions.

    xla     model/attention_xla.py: plain products and a gradient of their own, on any device
    splash  model/attention_splash.py: block-sparse kernels of JAX for TPUs, for text and for blocks
    cudnn   model/attention_cudnn.py: cuDNN's fused attention on GPUs, for text; blocks stay with xla
    auto    splash on TPUs, xla elsewhere; never cudnn (it has not been run on a GPU yet)

All are equal up to rounding, except at padding queries, whose results are never read. Attention of
other shapes (sampling, decoding, blocks at chosen positions) is always model/attention_xla.py, and so is
attention that a back end does not support.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.model import attention_cudnn, attention_splash, attention_xla
from fqs_jax.runtime import sharding

_OF_PLATFORM = {"tpu": "splash"}


def platform() -> str:
    """The platform of the mesh in scope, which need not be attached; without one, JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def choose(backend: str, target: str | None = None) -> str:
    """The back end for a platform (None = `platform()`), if `backend` is "auto"; otherwise `backend`."""
    return _OF_PLATFORM.get(target or platform(), "xla") if backend == "auto" else backend


def causal(
    query_BxTxNxH: jax.Array,
    key_BxTxGxH: jax.Array,
    value_BxTxGxH: jax.Array,
    segment_BxT: jax.Array | None,
    window: int | None,
    backend: str = "auto",
    packed: bool = False,
) -> jax.Array:
    """Causal attention of a text over itself, [B, T, N, H]; see `attention_xla.causal`.

    Args:
      packed: whether a row may hold several documents; cuDNN cannot keep them apart.

    Without a TPU, "splash" is interpreted, for tests; without a GPU, "cudnn" is xla.
    """
    chosen = choose(backend)
    if chosen == "splash":

        def splash(query: Any, keys: Any, segment: Any) -> jax.Array:
            return attention_splash.causal(
                query, keys[0], keys[1], segment, window, interpret=platform() != "tpu"
            )

        return _by_device(splash, query_BxTxNxH, (key_BxTxGxH, value_BxTxGxH), segment_BxT)
    supported = attention_cudnn.supports(query_BxTxNxH, packed)
    if chosen == "cudnn" and platform() == "gpu" and supported:

        def cudnn(query: Any, keys: Any, segment: Any) -> jax.Array:
            return attention_cudnn.causal(query, keys[0], keys[1], segment, window)

        return _by_device(cudnn, query_BxTxNxH, (key_BxTxGxH, value_BxTxGxH), segment_BxT)
    return attention_xla.causal(query_BxTxNxH, key_BxTxGxH, value_BxTxGxH, segment_BxT, window)


def blocks(
    query_BxTxSxNxH: jax.Array,
    key_BxTxSxGxH: jax.Array,
    value_BxTxSxGxH: jax.Array,
    text_key_BxTxGxH: jax.Array,
    text_value_BxTxGxH: jax.Array,
    num_slots: int,
    segment_BxT: jax.Array | None,
    window: int | None,
    backend: str = "auto",
) -> jax.Array:
    """Attention of thought blocks at every text position, over text and own slots, [B, T, S, N, H].

    Args:
      num_slots: M; the S queries of a position are S / M blocks, one after the other.
      segment_BxT, window: see `attention_xla.aligned_text`.
    """
    if choose(backend) == "splash":

        def splash(query: Any, keys: Any, segment: Any) -> jax.Array:
            own_k, own_v, text_k, text_v = keys
            return attention_splash.blocks(
                query,
                own_k,
                own_v,
                text_k,
                text_v,
                num_slots,
                segment,
                window,
                interpret=platform() != "tpu",
            )

        keys = key_BxTxSxGxH, value_BxTxSxGxH, text_key_BxTxGxH, text_value_BxTxGxH
        return _by_device(splash, query_BxTxSxNxH, keys, segment_BxT)
    slots = query_BxTxSxNxH.shape[2]
    over_text = attention_xla.aligned_text(
        query_BxTxSxNxH,
        text_key_BxTxGxH,
        text_value_BxTxGxH,
        1 + jnp.arange(slots) % num_slots,
        segment_BxT,
        window,
    )
    return attention_xla.merge(
        over_text,
        attention_xla.own_blocks(
            query_BxTxSxNxH, key_BxTxSxGxH, value_BxTxSxGxH, num_slots, window
        ),
    )


def _by_device(
    function: Callable[[Any, Any, Any], jax.Array],
    query: jax.Array,
    keys: tuple[jax.Array, ...],
    segment_BxT: jax.Array | None,
) -> jax.Array:
    """Call function(query, keys, segment) on each device with its rows and heads.

    The compiler cannot partition a kernel, but rows and heads are independent. Kv heads are repeated
    until the mesh's `tensor` axis divides them.

    Args:
      query: [B, ..., N, H]. keys: keys and values, [B, ..., G, H].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(query, keys, segment_BxT)
    heads = keys[0].shape[-2]
    repeats = int(np.lcm(heads, mesh.shape["tensor"])) // heads
    keys = tuple(jnp.repeat(x, repeats, axis=-2) for x in keys) if repeats > 1 else keys

    def placement(x: jax.Array, last: str) -> Any:
        return sharding.spec("B" + "." * (x.ndim - 1 - len(last)) + last, x.shape, mesh)

    cut = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(
            placement(query, "N."),
            tuple(placement(x, "G.") for x in keys),
            None if segment_BxT is None else placement(segment_BxT, ""),
        ),
        out_specs=placement(query, "N."),
        check_vma=False,
    )
    return cut(query, keys, segment_BxT)
