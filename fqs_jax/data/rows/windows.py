"""Rows of a fixed length, cut from documents of tokens.

A batch is a dict of arrays: `tokens` int32 [B, T], `mask` bool [B, T], and, if rows hold several
documents, `segment` int32 [B, T]: the number of each token's document in the row, from 1. Batches of
conversations have `target` bool [B, T]: the tokens to predict. Padding is always on the right, filled
with `pad_id`; its mask and its target are False, and its segment is 0.

There are three ways to cut; none of them depends on shuffling or batches:

* `packed_row`: all documents as one stream, without padding. For training on much text.
* `crop`: one random piece of a document, a new one each epoch. The published method.
* `evaluation_windows`: every token is predicted once, from its own document only. For evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from fqs_jax.runtime.errors import UserError

Batch = dict[str, np.ndarray]
Tokens = Sequence[int] | np.ndarray  # one document


class Stream(Protocol):
    """Tokens of documents end to end; implemented by `token_store.Tokens`."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop - 1, int32."""

    def document(self, start: int, stop: int) -> np.ndarray:
        """The document numbers of these tokens, int64."""


def packed_row(tokens: Stream, row: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """One of the consecutive windows that the stream of all documents is cut into.

    A document continues in the next window, and a window may hold several documents.

    Returns:
      tokens, segment, both int32 [<= T]; only the stream's last row is shorter than T.
    """
    start = row * seq_len
    row_tokens = tokens.read(start, start + seq_len)
    document = tokens.document(start, start + len(row_tokens))
    segment = 1 + np.cumsum(np.diff(document, prepend=document[:1]) > 0)
    return row_tokens, segment.astype(np.int32)


def num_packed_rows(tokens: Stream, seq_len: int) -> int:
    """The number of rows in the stream; the last one may be shorter than T."""
    _check_seq_len(seq_len)
    return -(-len(tokens) // seq_len)


def crop(
    document: Tokens,
    seq_len: int,
    bos_id: int | None,
    *,
    seed: int,
    epoch: int,
    index: int,
) -> np.ndarray:
    """A random piece of one document, as a pure function of (seed, epoch, index of the document).

    All possible starts are equally likely. A document that fits into the row is returned whole.

    Returns:
      int32 [<= T], with bos_id in front unless it is None.
    """
    _check_seq_len(seq_len)
    before = _optional(bos_id)
    room = seq_len - len(before)
    last_start = max(len(document) - room, 0)
    start = int(np.random.default_rng((seed, epoch, index)).integers(last_start + 1))
    return np.concatenate([before, _int32(document[start : start + room])])


def evaluation_windows(
    documents: Sequence[Tokens],
    seq_len: int,
    bos_id: int | None,
    pad_id: int,
) -> Batch:
    """Windows that predict every token exactly once, in order, from its own document only.

    With a BOS token, each piece of T - 1 tokens gets one in front. Without one, a window begins with
    the last token of the window before, and the first token of a document is not predicted.

    Returns:
      tokens int32, mask bool [B, T]; column t predicts column t + 1 wherever mask[:, t + 1].
    """
    _check_seq_len(seq_len)
    rows = [row for document in documents for row in _pieces(document, seq_len, bos_id)]
    return pad_rows(rows, seq_len, pad_id)


def pad_rows(rows: Sequence[Tokens], seq_len: int, pad_id: int) -> Batch:
    """Rows of up to T tokens as a batch: tokens int32, mask bool [B, T], padded on the right."""
    tokens_BxT = np.full((len(rows), seq_len), pad_id, np.int32)
    mask_BxT = np.zeros((len(rows), seq_len), bool)
    for b, row in enumerate(rows):
        tokens_BxT[b, : len(row)] = row
        mask_BxT[b, : len(row)] = True
    return {"tokens": tokens_BxT, "mask": mask_BxT}


def _pieces(document: Tokens, seq_len: int, bos_id: int | None) -> Iterator[np.ndarray]:
    tokens = np.concatenate([_optional(bos_id), _int32(document)])
    for start in range(0, len(tokens) - 1, seq_len - 1):
        piece = tokens[start : start + seq_len].copy()
        if bos_id is not None:
            piece[0] = bos_id  # replaces the last token of the window before
        yield piece


def _optional(token_id: int | None) -> np.ndarray:
    return _int32([] if token_id is None else [token_id])


def _int32(tokens: Tokens) -> np.ndarray:
    return np.asarray(tokens, np.int32)


def _check_seq_len(seq_len: int) -> None:
    if seq_len < 2:
        raise UserError(f"seq_len is {seq_len}; set at least 2, one token to predict another")
