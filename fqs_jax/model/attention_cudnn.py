"""Causal attention of a text over itself by cuDNN's fused kernels, on GPUs.

Through `jax.nn.dot_product_attention` (docs.jax.dev, "jax.nn.dot_product_attention"): cuDNN takes
bfloat16 and float16, heads of a multiple of 8 up to 128 (256 from Hopper on, not used), a causal mask,
lengths of rows, and a window on the left. It cannot keep several documents of a row apart, and its
log-sum-exp has no gradient, so it cannot be merged with a block's own slots.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

_DTYPES = (jnp.bfloat16, jnp.float16)
_MAX_HEAD_DIM = 128


def supports(query_BxTxNxH: jax.Array, packed: bool) -> bool:
    """True if `causal` can compute this on every GPU that cuDNN's fused attention supports.

    Args:
      packed: whether a row may hold several documents.
    """
    size = query_BxTxNxH.shape[-1]
    fits = size % 8 == 0 and size <= _MAX_HEAD_DIM
    return query_BxTxNxH.dtype in _DTYPES and fits and not packed


def causal(
    query_BxTxNxH: jax.Array,
    key_BxTxGxH: jax.Array,
    value_BxTxGxH: jax.Array,
    segment_BxT: jax.Array | None,
    window: int | None,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """Causal attention, [B, T, N, H].

    Args:
      segment_BxT: 0 is padding, all of it on the right; all other tokens of a row are one document. A
        row without any text sees its first token; its results are never read.
      window: a query at p sees keys q with 0 <= p - q < window; None = all.
      implementation: "xla" computes the same anywhere, for tests.
    """
    lengths_B = None
    if segment_BxT is not None:
        lengths_B = jnp.maximum(jnp.sum(segment_BxT != 0, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query_BxTxNxH,
        key_BxTxGxH,
        value_BxTxGxH,
        is_causal=True,
        key_value_seq_lengths=lengths_B,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
