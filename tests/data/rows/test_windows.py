"""Cutting documents into rows, against what must hold of every cut."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.rows.windows import (
    crop,
    evaluation_windows,
    num_packed_rows,
    packed_row,
    pad_rows,
)
from fqs_jax.runtime.errors import UserError

BOS, EOS, PAD = 1001, 1002, 1003  # no text token is one of these

documents_of_tokens = st.lists(st.lists(st.integers(0, 999), max_size=20), max_size=6)
seq_lens = st.integers(2, 9)
bos_ids = st.sampled_from([BOS, None])


def check_rows(batch, seq_len):
    """A batch as lists of tokens, after checking its types and that padding is on the right."""
    tokens, mask = batch["tokens"], batch["mask"]
    assert set(batch) == {"tokens", "mask"}
    assert tokens.dtype == np.int32 and mask.dtype == np.bool_
    assert tokens.shape == mask.shape == (len(tokens), seq_len)
    rows = []
    for row, real in zip(tokens.tolist(), mask.tolist(), strict=True):
        length = sum(real)
        assert length > 0
        assert real == [True] * length + [False] * (seq_len - length)
        assert row[length:] == [PAD] * (seq_len - length)
        rows.append(row[:length])
    return rows


class Stream:
    """Documents end to end, the plain way."""

    def __init__(self, documents):
        self.tokens = [token for document in documents for token in document]
        self.home = [d for d, document in enumerate(documents) for _ in document]

    def __len__(self):
        return len(self.tokens)

    def read(self, start, stop):
        return np.array(self.tokens[start:stop], np.int32)

    def document(self, start, stop):
        return np.array(self.home[start:stop], np.int64)


@given(documents_of_tokens, seq_lens)
def test_packed_rows_lose_nothing_and_keep_documents_apart(documents, seq_len):
    stream = Stream(documents)
    rows = [packed_row(stream, row, seq_len) for row in range(num_packed_rows(stream, seq_len))]
    assert [token for tokens, _ in rows for token in tokens.tolist()] == stream.tokens
    assert all(len(tokens) == seq_len for tokens, _ in rows[:-1])
    at = 0
    for tokens, segment in rows:
        assert tokens.dtype == segment.dtype == np.int32 and len(tokens) == len(segment) > 0
        home = stream.home[at : at + len(tokens)]
        at += len(tokens)
        assert segment[0] == 1 and set(np.diff(segment)) <= {0, 1}  # 1, 2, .. without gaps
        same_segment = segment[:, None] == segment
        assert (same_segment == np.equal.outer(home, home)).all()


def test_packed_example():
    stream = Stream([[BOS, 1, 2, EOS], [], [BOS, 3, EOS]])
    assert num_packed_rows(stream, 5) == 2
    tokens, segment = packed_row(stream, 0, 5)
    assert tokens.tolist() == [BOS, 1, 2, EOS, BOS] and segment.tolist() == [1, 1, 1, 1, 2]
    tokens, segment = packed_row(stream, 1, 5)
    assert tokens.tolist() == [3, EOS] and segment.tolist() == [1, 1]


def test_a_real_token_may_equal_the_pad_token():
    batch = pad_rows([[0, 0, 0]], 4, 0)
    assert batch["mask"].tolist() == [[True, True, True, False]]


@given(documents_of_tokens.map(lambda documents: [d for d in documents if d]), seq_lens, bos_ids)
def test_every_token_is_predicted_once_in_order_from_its_own_document(documents, seq_len, bos_id):
    # Give every token a name of its own, so that none can stand in for another.
    count, named = 0, []
    for document in documents:
        named.append(list(range(count, count + len(document))))
        count += len(document)
    rows = check_rows(evaluation_windows(named, seq_len, bos_id, PAD), seq_len)

    predicted = [token for row in rows for token in row[1:]]
    assert predicted == [t for d in named for t in (d if bos_id is not None else d[1:])]
    home = {token: d for d, document in enumerate(named) for token in document}
    for row in rows:
        if bos_id is not None:
            assert row[0] == bos_id
            row = row[1:]
        assert bos_id not in row
        assert len({home[token] for token in row}) == 1
        assert row == list(range(row[0], row[0] + len(row)))  # contexts have no gaps


def test_evaluation_windows_example():
    with_bos = evaluation_windows([[1, 2, 3, 4, 5], [6]], 3, BOS, PAD)["tokens"]
    assert with_bos.tolist() == [[BOS, 1, 2], [BOS, 3, 4], [BOS, 5, PAD], [BOS, 6, PAD]]
    without = evaluation_windows([[1, 2, 3, 4, 5], [6]], 3, None, PAD)["tokens"]
    assert without.tolist() == [[1, 2, 3], [3, 4, 5]]  # nothing predicts 1 and 6


def test_evaluation_windows_do_not_change_the_documents():
    document = np.arange(10, dtype=np.int32)
    evaluation_windows([document], 4, BOS, PAD)
    assert document.tolist() == list(range(10))


@given(st.integers(0, 30), seq_lens, bos_ids, st.integers(0, 2**32 - 1), st.integers(0, 50))
def test_crop_is_a_piece_of_the_document(length, seq_len, bos_id, seed, epoch):
    document = list(range(length))
    row = crop(document, seq_len, bos_id, seed=seed, epoch=epoch, index=3)
    assert row.dtype == np.int32
    again = crop(np.array(document), seq_len, bos_id, seed=seed, epoch=epoch, index=3)
    assert row.tolist() == again.tolist()
    piece = row.tolist()
    if bos_id is not None:
        assert piece.pop(0) == bos_id
    assert len(piece) == min(length, seq_len - (bos_id is not None))
    if piece:
        assert piece == list(range(piece[0], piece[0] + len(piece)))


def test_crops_start_everywhere_equally_often():
    starts = collections.Counter(
        int(crop(range(10), 4, None, seed=0, epoch=epoch, index=0)[0]) for epoch in range(7000)
    )
    assert sorted(starts) == list(range(7))
    assert all(850 < count < 1150 for count in starts.values())  # 1000 each, 5 deviations


def test_crops_differ_between_seeds_epochs_and_documents():
    def crops(**where):
        start = {"seed": 0, "epoch": 0, "index": 0} | where
        return int(crop(range(10**6), 8, None, **start)[0])

    assert len({crops(seed=i) for i in range(50)}) == 50
    assert len({crops(epoch=i) for i in range(50)}) == 50
    assert len({crops(index=i) for i in range(50)}) == 50


def test_no_rows():
    for batch in (
        pad_rows([], 4, PAD),
        evaluation_windows([[]], 4, BOS, PAD),
        evaluation_windows([[]], 4, None, PAD),
    ):
        assert batch["tokens"].shape == batch["mask"].shape == (0, 4)


@pytest.mark.parametrize("seq_len", [-1, 0, 1])
def test_seq_len_too_short(seq_len):
    for cut in (
        lambda: num_packed_rows(Stream([[1]]), seq_len),
        lambda: evaluation_windows([[1]], seq_len, BOS, PAD),
        lambda: crop([1], seq_len, None, seed=0, epoch=0, index=0),
    ):
        with pytest.raises(UserError, match=f"seq_len is {seq_len}; set at least 2"):
            cut()
