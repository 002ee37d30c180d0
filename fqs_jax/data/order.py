"""Which rows a training step sees: a pure function of (seed, step), with no iterator state.

The rows of a run form one endless stream, epoch after epoch, each epoch in an order of its own.
Step s takes rows s*B to s*B + B - 1 of it. To resume at a step is to ask for its batch; row i does
not depend on the batch size.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import grain
import numpy as np

from fqs_jax.data import windows
from fqs_jax.errors import UserError


def shuffled_indices(size: int, seed: int) -> grain.MapDataset[int]:
    """An endless stream over range(size): each epoch visits every index once, in a new order.

    Element i is computed by itself (a cipher on the index), so nothing of this size is stored.
    """
    if not 1 <= size < 2**32:
        raise UserError(f"{size} rows to shuffle; give text for 1 to 4294967295 rows")
    if not 0 <= seed < 2**32:
        raise UserError(f"the data seed is {seed}; set one from 0 to 4294967295")
    # The seed goes through seed() and not through shuffle(seed=...), which only adds the epoch to
    # it, so that epoch 1 of seed 0 would be epoch 0 of seed 1.
    return grain.MapDataset.range(size).seed(seed).shuffle().repeat(None)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An endless stream of rows that can be read at any place.

    Attributes:
      stream: element i is row i, int32 of up to T tokens.
      epoch_size: rows in an epoch.
    """

    stream: grain.MapDataset[np.ndarray]
    epoch_size: int
    batch_size: int
    seq_len: int
    pad_id: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; set at least 1")

    def batch(self, step: int) -> windows.Batch:
        """The batch of a step, counted from 0: tokens int32 [B, T], mask bool [B, T]."""
        return self.rows(step * self.batch_size, (step + 1) * self.batch_size)

    def digest(self) -> str:
        """Tells this stream from another: a hash of its size and of its first rows."""
        sample = self.rows(0, min(self.epoch_size, 64))
        content = b"".join(np.ascontiguousarray(sample[name]).tobytes() for name in sorted(sample))
        return hashlib.sha256(repr((self.epoch_size, self.seq_len)).encode() + content).hexdigest()

    def rows(self, start: int, stop: int) -> windows.Batch:
        """Rows start to stop - 1 of the stream, as a batch."""
        if start < 0:
            raise UserError(f"there is no row {start}; rows and steps are counted from 0")
        rows = [self.stream[i] for i in range(start, stop)]
        return windows.pad_rows(rows, self.seq_len, self.pad_id)


def packed_dataset(
    documents: Sequence[windows.Tokens],
    seq_len: int,
    *,
    bos_id: int | None,
    eos_id: int | None,
    pad_id: int,
    batch_size: int,
    seed: int,
) -> Dataset:
    """Shuffled windows of the documents packed into one stream (`windows.pack`)."""
    packed = windows.pack(documents, seq_len, bos_id, eos_id, pad_id)

    def read(epoch: int, row: int) -> np.ndarray:
        del epoch  # a window is the same in every epoch
        return packed["tokens"][row][packed["mask"][row]]

    stream = _stream(read, len(packed["tokens"]), seed)
    return Dataset(stream, len(packed["tokens"]), batch_size, seq_len, pad_id)


def cropped_dataset(
    documents: Sequence[windows.Tokens],
    seq_len: int,
    *,
    bos_id: int | None,
    pad_id: int,
    batch_size: int,
    seed: int,
) -> Dataset:
    """One random piece of every document an epoch (`windows.crop`), documents shuffled."""

    def read(epoch: int, index: int) -> np.ndarray:
        return windows.crop(documents[index], seq_len, bos_id, seed=seed, epoch=epoch, index=index)

    return Dataset(_stream(read, len(documents), seed), len(documents), batch_size, seq_len, pad_id)


def _stream(
    read: Callable[[int, int], np.ndarray], size: int, seed: int
) -> grain.MapDataset[np.ndarray]:
    """The stream of read(epoch, item), each item of range(size) once an epoch."""
    order = shuffled_indices(size, seed)
    return order.map_with_index(lambda i, item: read(i // size, item))
