"""Attention by JAX's block-sparse kernels for TPUs ("splash attention", Pallas), with their gradients.

    jax.experimental.pallas.ops.tpu.splash_attention

A mask is a function of the indices of query and key, computed inside the kernel; tiles in which nothing
is visible are neither read nor computed. Thought blocks at all positions are one call. Its queries
are the slots of all blocks, its keys the text and then all slots. A tile of queries sees the text
up to it and the one or two tiles on the diagonal, so no log-sum-exp needs merging.

Query and key must have the same document number, also where it is 0 for padding. So a padding query
sees padding here and text in model/attention_xla.py; its result is never read.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info

LANES = 128  # of a vector register: sizes of heads and tiles are multiples
MAX_TILE = 512  # queries, and keys, of a tile


@dataclasses.dataclass(frozen=True)
class TextMask(masks.Mask):
    """Key j is visible to query t if 0 <= t - j < window.

    Attributes:
      length: tokens of the text, padded to tiles.
    """

    length: int
    window: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.length, self.length

    @property
    def q_sequence(self) -> np.ndarray:
        return np.arange(self.shape[0], dtype=np.int32)

    def mask_function(self, query: Any, key: Any) -> Any:
        """True where a query sees a key, given their indices: NumPy arrays here, JAX arrays in the kernel."""
        return _within(query - key, self.window)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, columns = (np.arange(*s.indices(n)) for s, n in zip(index, self.shape, strict=True))
        return np.asarray(self.mask_function(rows[:, None], columns[None]))


@dataclasses.dataclass(frozen=True)
class BlocksMask(TextMask):
    """Queries are slots of blocks at all text positions; keys the text, then the slots themselves.

    Attributes:
      length, window: as for the text; the window counts text position + slot.
      queries: number of queries, padded to tiles.
      a_position: queries at a text position, num_slots for each of its blocks.
    """

    queries: int
    a_position: int
    num_slots: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.queries, self.length + self.queries

    def mask_function(self, query: Any, key: Any) -> Any:
        slot = query % self.num_slots
        of_text = query // self.a_position - key
        distance = query - (key - self.length)
        text = (key < self.length) & (of_text >= 0)
        if self.window is not None:
            text = text & (of_text + slot + 1 < self.window)
        # A query in the padding after the last position sees itself, because each must see a key.
        return text | (_within(distance, self.window) & (distance <= slot))


def causal(
    query_BxTxNxH: jax.Array,
    key_BxTxGxH: jax.Array,
    value_BxTxGxH: jax.Array,
    segment_BxT: jax.Array | None,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    """Causal attention of a text over itself, [B, T, N, H].

    Args:
      interpret: run the kernels step by step on any device, for tests.
    """
    length = query_BxTxNxH.shape[1]
    tile = _tile(length)
    mask = TextMask(_up(length, tile), window)
    keys = key_BxTxGxH, value_BxTxGxH
    return _attend(query_BxTxNxH, *keys, segment_BxT, segment_BxT, mask, tile, interpret)


def blocks(
    query_BxTxSxNxH: jax.Array,
    key_BxTxSxGxH: jax.Array,
    value_BxTxSxGxH: jax.Array,
    text_key_BxTxGxH: jax.Array,
    text_value_BxTxGxH: jax.Array,
    num_slots: int,
    segment_BxT: jax.Array | None,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    """Attention of blocks over text and own slots, [B, T, S, N, H]; see `attention.blocks`."""
    B, T, S = query_BxTxSxNxH.shape[:3]
    tile = _tile(T)
    length = _up(T, tile)
    mask = BlocksMask(length, window, _up(T * S, tile), S, num_slots)

    def flat(x_BxTxSx: jax.Array) -> jax.Array:
        return x_BxTxSx.reshape(B, T * S, *x_BxTxSx.shape[3:])

    def joined(text: jax.Array, own: jax.Array) -> jax.Array:
        return jnp.concatenate([_pad(text, 1, length), own], axis=1)

    own_segment, key_segment = None, None
    if segment_BxT is not None:
        own_segment = jnp.repeat(segment_BxT, S, axis=1)
        key_segment = joined(segment_BxT, own_segment)
    output = _attend(
        flat(query_BxTxSxNxH),
        joined(text_key_BxTxGxH, flat(key_BxTxSxGxH)),
        joined(text_value_BxTxGxH, flat(value_BxTxSxGxH)),
        own_segment,
        key_segment,
        mask,
        tile,
        interpret,
    )
    return output.reshape(query_BxTxSxNxH.shape)


def _attend(
    query_BxXxNxH: jax.Array,
    key_BxYxGxH: jax.Array,
    value_BxYxGxH: jax.Array,
    segment_BxX: jax.Array | None,
    segment_BxY: jax.Array | None,
    mask: TextMask,
    tile: int,
    interpret: bool,
) -> jax.Array:
    """Attention of queries over keys under a mask of their padded numbers, [B, X, N, H]."""
    B, X, N, H = query_BxXxNxH.shape
    # The kernel does not scale.
    query = (query_BxXxNxH.astype(jnp.float32) * H**-0.5).astype(query_BxXxNxH.dtype)
    arrays = tuple(
        _pad(_pad(x, 1, size), 3, _up(H, LANES)).swapaxes(1, 2)
        for x, size in zip(
            (query, key_BxYxGxH, value_BxYxGxH), (*mask.shape, mask.shape[1]), strict=True
        )
    )
    segments = None
    if segment_BxX is not None and segment_BxY is not None:
        segments = splash.SegmentIds(
            *(
                _pad(segment.astype(jnp.int32), 1, size)
                for segment, size in zip((segment_BxX, segment_BxY), mask.shape, strict=True)
            )
        )
    output: Any = jax.vmap(_kernel(mask, tile, interpret))(*arrays, segments)
    return output.swapaxes(1, 2)[:, :X, :, :H]


@functools.lru_cache(maxsize=64)
def _kernel(mask: TextMask, tile: int, interpret: bool) -> splash.SplashAttentionKernel:
    """The kernels of a mask, forward and backward, for all heads.

    Like the library's `make_splash_mha`, but with NumPy tables, which can be cached across traces.
    """
    forward, function = info.process_mask(masks.MultiHeadMask([mask]), (tile, tile))
    backward, _ = info.process_mask_dkv(masks.MultiHeadMask([mask]), (tile, tile))
    return splash.SplashAttentionKernel(
        forward,
        forward,
        backward,
        block_sizes=_tiles(tile),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name="attended",  # a rematerialisation policy may keep it (model/decoder.py)
        mask_function=function,
        interpret=interpret,
    )


def _tiles(tile: int) -> splash.BlockSizes:
    """The same tiles forward and backward."""
    return splash.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )


def _within(distance: Any, window: int | None) -> Any:
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _tile(length: int) -> int:
    """Queries and keys of a tile, not many more than the text has."""
    return min(MAX_TILE, LANES << max(0, (length // LANES).bit_length() - 1))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _pad(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Append zeros along an axis, up to a size."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)
