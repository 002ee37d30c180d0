"""Which rows a training step sees: a pure function of (seed, step), with no iterator state.

The rows of a run form one endless stream, epoch after epoch, each epoch in an order of its own.
Step s takes rows s*B to s*B + B - 1 of it. To resume at a step is to ask for its batch; row i depends
neither on the batch size nor on who reads it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from fqs_jax.data.rows import mixtures, windows
from fqs_jax.data.rows.ahead import read_ahead
from fqs_jax.runtime.errors import UserError

Row = dict[
    str, np.ndarray
]  # tokens int32 [<= T], and segment likewise if rows hold several documents


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
class Rows:
    """The rows of a source, before they are shuffled.

    Attributes:
      size: rows in an epoch.
      read: (epoch, row, seed) -> the row.
    """

    size: int
    read: Callable[[int, int, int], Row]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An endless stream of rows that can be read at any place.

    Attributes:
      read: row i of the stream.
      epoch_size: rows in an epoch; of a mixture, rows until every source was read through.
      identity: what the rows are made from.
      workers: processes that `batches` reads ahead in; 0 = threads.
    """

    read: Callable[[int], Row]
    epoch_size: int
    batch_size: int
    seq_len: int
    pad_id: int
    identity: str = ""
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; set at least 1")
        if self.workers < 0:
            raise UserError(f"data.workers is {self.workers}; set 0 (threads) or more")

    def batch(self, step: int, rows: np.ndarray | None = None) -> windows.Batch:
        """The batch of a step, counted from 0: tokens int32 [B, T], mask bool [B, T].

        Packed rows have segment int32 [B, T] as well.

        Args:
          rows: increasing numbers from 0 to B - 1: only these rows of the batch are read, and make
            it up. None = all.
        """
        first = step * self.batch_size
        numbers = range(self.batch_size) if rows is None else rows
        if len(numbers) and not 0 <= min(numbers) <= max(numbers) < self.batch_size:
            raise UserError(
                f"rows {min(numbers)} to {max(numbers)} of a batch of {self.batch_size}"
            )
        return self._read([first + int(number) for number in numbers])

    def batches(
        self, first: int, last: int, rows: np.ndarray | None = None
    ) -> Iterator[windows.Batch]:
        """The batches of steps first to last - 1, read ahead. May be left at any time."""
        return read_ahead(functools.partial(self.batch, rows=rows), first, last, self.workers)

    def rows(self, start: int, stop: int) -> windows.Batch:
        """Rows start to stop - 1 of the stream, as a batch."""
        return self._read(range(start, stop))

    def digest(self) -> str:
        """Tells this stream from another: a hash of what it is made from and of its first rows."""
        sample = self.rows(0, min(self.epoch_size, 16))
        content = b"".join(np.ascontiguousarray(sample[name]).tobytes() for name in sorted(sample))
        told = repr((self.epoch_size, self.seq_len, self.identity)).encode()
        return hashlib.sha256(told + content).hexdigest()

    def _read(self, numbers: Sequence[int]) -> windows.Batch:
        if len(numbers) and numbers[0] < 0:
            raise UserError(f"there is no row {numbers[0]}; rows and steps are counted from 0")
        rows = [self.read(number) for number in numbers]
        batch = windows.pad_rows([row["tokens"] for row in rows], self.seq_len, self.pad_id)
        if rows and "segment" in rows[0]:
            segments = windows.pad_rows([row["segment"] for row in rows], self.seq_len, 0)
            batch["segment"] = segments["tokens"]
        return batch


def packed_rows(tokens: windows.Stream, seq_len: int, attend_across_documents: bool) -> Rows:
    """Windows of all documents end to end (`windows.packed`)."""

    def read(epoch: int, row: int, seed: int) -> Row:
        del epoch, seed  # a window is the same in every epoch
        row_tokens, segment = windows.packed(tokens, row, seq_len)
        if attend_across_documents:
            return {"tokens": row_tokens}
        return {"tokens": row_tokens, "segment": segment}

    return Rows(windows.num_packed(tokens, seq_len), read)


def cropped_rows(
    size: int, document: Callable[[int], windows.Tokens], seq_len: int, bos_id: int | None
) -> Rows:
    """One random piece of every document an epoch (`windows.crop`)."""

    def read(epoch: int, index: int, seed: int) -> Row:
        tokens = document(index)
        return {
            "tokens": windows.crop(tokens, seq_len, bos_id, seed=seed, epoch=epoch, index=index)
        }

    return Rows(size, read)


def shuffled(rows: Rows, seed: int) -> Callable[[int], Row]:
    """Row i of the endless stream of these rows, each once an epoch."""
    order = shuffled_indices(rows.size, seed)
    return lambda i: rows.read(i // rows.size, order[i], seed)


def mixed(parts: Sequence[tuple[Rows, int]], seed: int) -> tuple[Callable[[int], Row], int]:
    """Row i of a mixture with these weights, and its epoch size.

    Each part goes through epochs of its own, in an order of its own.
    """
    if len(parts) == 1:
        return shuffled(parts[0][0], seed), parts[0][0].size
    weights = [weight for _, weight in parts]
    seeds = np.random.SeedSequence(seed).generate_state(len(parts))
    streams = [shuffled(rows, int(s)) for (rows, _), s in zip(parts, seeds, strict=True)]

    def read(i: int) -> Row:
        part, row = mixtures.place(i, weights)
        return streams[part](row)

    return read, mixtures.epoch_size([rows.size for rows, _ in parts], weights)
