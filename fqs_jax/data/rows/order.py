"""The order of training rows: a pure function of (seed, step), with no iterator state.

The rows of a stage form one endless stream of epochs, and each epoch has its own order. Step s takes
rows s*B to s*B + B - 1. To resume at a step, read its batch. Row i does not depend on the batch size
or on the process that reads it.

Streams are Grain datasets with random access. Two parts are our own, because a resumed run must read
the same rows as before: crops are drawn from (seed, epoch, document) instead of by `random_map`, and
the shares of a mixture are exact, while `MapDataset.mix` rounds the weights.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import grain
import numpy as np

from fqs_jax.data import marked_tokens
from fqs_jax.data.rows import windows
from fqs_jax.data.rows.ahead import read_ahead
from fqs_jax.runtime.errors import UserError

# A row: `tokens` int32 [<= T], and `segment` likewise if rows hold several documents.
Row = dict[str, np.ndarray]
# Endless rows by number; its length is the size of an epoch.
Stream: TypeAlias = grain.MapDataset[Row]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The training rows of a stage, readable at any step.

    Attributes:
      identity: description of the sources that the rows are made from.
      marked: tokens that are read but not predicted are stored as ~id (data/marked_tokens.py).
      workers: number of processes that `batches` reads ahead in; 0 = threads.
    """

    stream: Stream
    batch_size: int
    seq_len: int
    pad_id: int
    identity: str = ""
    marked: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; set at least 1")
        if self.workers < 0:
            raise UserError(f"data.workers is {self.workers}; set 0 (threads) or more")

    @property
    def epoch_size(self) -> int:
        """The number of rows after which every source has been read through at least once."""
        return len(self.stream)

    def batch(self, step: int, rows: np.ndarray | None = None) -> windows.Batch:
        """The batch of a step, counted from 0: tokens int32 [B, T], mask bool [B, T].

        Packed rows have segment int32 [B, T] as well, and marked ones target bool [B, T].

        Args:
          rows: increasing numbers from 0 to B - 1. Only these rows of the batch are read and
            returned; None = all.

        Raises:
          UserError: the step is negative, a row is not in the batch, or a document cannot be read.
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
        """The batches of steps first to last - 1, read ahead. The reader may stop at any time."""
        return read_ahead(functools.partial(self.batch, rows=rows), first, last, self.workers)

    def rows(self, start: int, stop: int) -> windows.Batch:
        """Rows start to stop - 1 of the stream, as a batch."""
        return self._read(range(start, stop))

    def digest(self) -> str:
        """A hash that identifies this stream, computed from its identity and its first rows."""
        sample = self.rows(0, min(self.epoch_size, 16))
        content = b"".join(np.ascontiguousarray(sample[name]).tobytes() for name in sorted(sample))
        origin = repr((self.epoch_size, self.seq_len, self.identity)).encode()
        return hashlib.sha256(origin + content).hexdigest()

    def _read(self, numbers: Sequence[int]) -> windows.Batch:
        if len(numbers) and numbers[0] < 0:
            raise UserError(f"no row {numbers[0]} exists; rows and steps are counted from 0")
        rows = [self.stream[number] for number in numbers]
        batch = windows.pad_rows([row["tokens"] for row in rows], self.seq_len, self.pad_id)
        if rows and "segment" in rows[0]:
            segments = windows.pad_rows([row["segment"] for row in rows], self.seq_len, 0)
            batch["segment"] = segments["tokens"]
        if self.marked:
            batch["tokens"], predicted_BxT = marked_tokens.split(batch["tokens"])
            batch["target"] = predicted_BxT & batch["mask"]
        return batch


def shuffled_indices(size: int, seed: int) -> grain.MapDataset[int]:
    """The numbers of range(size), shuffled; elements beyond `size` are those of the next epochs.

    Each epoch has every number once, in a new order. Element i is computed by itself (a cipher on
    the index), so nothing of this size is stored.
    """
    if not 1 <= size < 2**32:
        raise UserError(f"{size} rows to shuffle; give text for 1 to 4294967295 rows")
    if not 0 <= seed < 2**32:
        raise UserError(f"the data seed is {seed}; set one from 0 to 4294967295")
    # The seed goes through seed() and not through shuffle(seed=...), which only adds the epoch to
    # it, so that epoch 1 of seed 0 would be epoch 0 of seed 1.
    return grain.MapDataset.range(size).seed(seed).shuffle()


def packed_rows(
    tokens: windows.Stream, seq_len: int, attend_across_documents: bool, seed: int
) -> Stream:
    """Windows of all documents end to end (`windows.packed_row`), shuffled."""

    def read(row: int) -> Row:
        row_tokens, segment = windows.packed_row(tokens, row, seq_len)
        if attend_across_documents:
            return {"tokens": row_tokens}
        return {"tokens": row_tokens, "segment": segment}

    return shuffled_indices(windows.num_packed_rows(tokens, seq_len), seed).map(read)


def cropped_rows(
    size: int,
    document: Callable[[int], windows.Tokens],
    seq_len: int,
    bos_id: int | None,
    seed: int,
) -> Stream:
    """One random piece of every document in each epoch (`windows.crop`), shuffled.

    Args:
      size: number of documents.
      document: returns the tokens of a document by its number.
    """

    def read(i: int, index: int) -> Row:  # i is not reduced to the epoch
        piece = windows.crop(
            document(index), seq_len, bos_id, seed=seed, epoch=i // size, index=index
        )
        return {"tokens": piece}

    return shuffled_indices(size, seed).map_with_index(read)


def mixed(parts: Sequence[tuple[Callable[[int], Stream], int]], seed: int) -> Stream:
    """A mixture of parts that each go through their own epochs, in their own order.

    Args:
      parts: functions that return a part's stream for a seed, each with the part's weight.
    """
    if len(parts) == 1:
        return parts[0][0](seed)
    weights = [weight for _, weight in parts]
    seeds = np.random.SeedSequence(seed).generate_state(len(parts))
    streams = [stream(int(s)) for (stream, _), s in zip(parts, seeds, strict=True)]
    shares = Shares([len(stream) for stream in streams], weights)
    return grain.MapDataset.select_from_datasets(streams, shares)


class Shares(grain.transforms.DatasetSelectionMap):
    """The part that each row of a mixture comes from, and that part's own row.

    Every part has exactly its share of the rows, evenly spread: of the first n rows, n times its
    share, plus or minus less than one row for each part. Parts give their rows in order.

    The first part is spread evenly over all rows, the next over the remaining ones, and so on. This
    is the arithmetic of `MapDataset.mix`, which rounds the weights first (7 : 3 to 233 : 100).
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[int]):
        """Shares of parts whose epochs have these sizes."""
        total = sum(weights)
        longest = max(
            -(-size * total // weight) for size, weight in zip(sizes, weights, strict=True)
        )
        self._epoch_size = min(longest + len(sizes), sys.maxsize)
        self._weights = tuple(weights)

    def __len__(self) -> int:
        """The number of rows after which every part has been read through at least once."""
        return self._epoch_size

    def __getitem__(self, row: int) -> tuple[int, int]:
        before, after = row, row + 1  # rows left to the parts still to come, up to this one
        total = sum(self._weights)
        for part, weight in enumerate(self._weights):
            rest = total - weight
            left_before, left_after = before * rest // total, after * rest // total
            if left_after - left_before < after - before:
                return part, before - left_before
            before, after, total = left_before, left_after, rest
        raise AssertionError("unreachable: the last part takes the remaining rows")
