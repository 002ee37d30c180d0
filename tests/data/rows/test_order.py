"""The order of rows: every epoch whole, no two alike, and nothing remembered."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.rows.order import Dataset, cropped_rows, mixed, packed_rows, shuffled_indices
from fqs_jax.data.rows.token_store import Tokens
from fqs_jax.data.rows.windows import packed_row
from fqs_jax.runtime.errors import UserError

BOS, PAD = 1001, 1003
DOCUMENTS = [list(range(100 * d, 100 * d + 5 + 3 * d)) for d in range(8)]
SEEDS = st.integers(0, 2**32 - 1)


def stream_of(documents):
    tokens = np.array([token for document in documents for token in document], np.int32)
    return Tokens((tokens,), np.array([0, len(tokens)]), np.cumsum([len(d) for d in documents]))


def pack_all(documents=DOCUMENTS, across=False):
    return functools.partial(packed_rows, stream_of(documents), 6, across)


def crop_all(documents=DOCUMENTS):
    return functools.partial(cropped_rows, len(documents), documents.__getitem__, 6, BOS)


def dataset_of(*parts, batch_size=4, seed=0, **fields):
    return Dataset(mixed(parts, seed), batch_size, 6, PAD, **fields)


def packed(batch_size=4, seed=0, documents=DOCUMENTS):
    return dataset_of((pack_all(documents), 1), batch_size=batch_size, seed=seed)


def cropped(batch_size=4, seed=0, documents=DOCUMENTS):
    return dataset_of((crop_all(documents), 1), batch_size=batch_size, seed=seed)


def mixture(batch_size=4, seed=0):
    parts = (pack_all(DOCUMENTS[:5]), 3), (pack_all(DOCUMENTS[5:]), 1)
    return dataset_of(*parts, batch_size=batch_size, seed=seed)


def assert_equal(one, other):
    assert set(one) == set(other) >= {"tokens", "mask"}
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@given(st.integers(1, 200), SEEDS, st.integers(0, 10**6))
def test_each_epoch_visits_every_index_once(size, seed, epoch):
    order = shuffled_indices(size, seed)
    assert sorted(order[epoch * size + i] for i in range(size)) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    def epoch(seed, number, size=50):
        order = shuffled_indices(size, seed)
        return tuple(order[number * size + i] for i in range(size))

    # Nor do neighbouring seeds share epochs, as they would if the epoch were added to the seed.
    orders = {epoch(seed, number) for seed in range(6) for number in range(6)}
    assert len(orders) == 36
    assert epoch(3, 4) == epoch(3, 4)


def test_order_is_pinned():
    """A run continued under another version of a library must see the same rows."""
    order = shuffled_indices(10, 0)
    assert [order[i] for i in range(20)] == [
        *[1, 2, 4, 5, 9, 7, 8, 6, 0, 3],
        *[9, 6, 1, 8, 2, 0, 3, 5, 4, 7],
    ]


def test_rows_are_pinned():
    """Read by the code before rows were Grain datasets, of a mixture and of crops."""
    first, far = (mixture(3).batch(step)["tokens"].tolist() for step in (5, 10**6))
    assert first == [[*range(604, 610)], [*range(5), 100], [*range(306, 312)]]
    assert far == [[416, *[PAD] * 5], [*range(306, 312)], [312, 313, *range(400, 404)]]
    starts = [cropped(3).batch(step)["tokens"][:, 1].tolist() for step in (5, 10**6)]
    assert starts == [[513, 721, 507], [410, 714, 602]]


def test_far_into_a_run():
    assert 0 <= shuffled_indices(1_000_003, 7)[10**15] < 1_000_003


@pytest.mark.parametrize("make", [packed, cropped, mixture])
@given(seed=SEEDS, step=st.integers(0, 10**6), batch_size=st.integers(1, 9))
def test_rows_do_not_depend_on_batch_size_or_on_what_was_read_before(make, seed, step, batch_size):
    dataset = make(batch_size, seed)
    batch = dataset.batch(step)
    assert batch["tokens"].shape == batch["mask"].shape == (batch_size, 6)
    assert batch["tokens"].dtype == np.int32 and batch["mask"].dtype == np.bool_

    fresh = make(1, seed)
    rows = [fresh.batch(step * batch_size + b) for b in reversed(range(batch_size))][::-1]
    assert_equal(batch, {k: np.concatenate([row[k] for row in rows]) for k in batch})
    assert_equal(batch, dataset.batch(step))
    doubled = dataclasses.replace(dataset, batch_size=2 * batch_size).batch(step // 2)
    half = slice(batch_size, None) if step % 2 else slice(batch_size)
    assert_equal(batch, {k: doubled[k][half] for k in batch})


@pytest.mark.parametrize("make", [packed, cropped, mixture])
@given(seed=SEEDS, step=st.integers(0, 10**6), hosts=st.integers(1, 4))
def test_hosts_that_read_their_rows_only_have_the_whole_batch_between_them(make, seed, step, hosts):
    dataset = make(8, seed)
    whole = dataset.batch(step)
    together = {name: np.zeros_like(values) for name, values in whole.items()}
    for host in range(hosts):
        own = np.arange(host, 8, hosts)
        for name, values in dataset.batch(step, own).items():
            together[name][own] = values
    assert_equal(together, whole)


@given(seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_of_packed_rows_is_the_packed_text(seed, epoch):
    dataset = packed(seed=seed)
    size, stream = dataset.epoch_size, stream_of(DOCUMENTS)
    assert size == -(-len(stream) // 6)
    read = dataset.rows(epoch * size, (epoch + 1) * size)
    rows = [
        (tokens[mask].tolist(), segment[mask].tolist())
        for tokens, mask, segment in zip(
            *(read[n] for n in ("tokens", "mask", "segment")), strict=True
        )
    ]
    whole = [[part.tolist() for part in packed_row(stream, row, 6)] for row in range(size)]
    assert sorted(rows) == sorted(map(tuple, whole))
    assert ((read["segment"] == 0) == ~read["mask"]).all()


def test_one_stream_has_no_segments():
    across = dataset_of((pack_all(across=True), 1))
    assert set(across.batch(0)) == {"tokens", "mask"}
    np.testing.assert_array_equal(across.batch(0)["tokens"], packed().batch(0)["tokens"])


@given(seed=SEEDS, weights=st.lists(st.integers(1, 9), min_size=2, max_size=3))
def test_each_part_of_a_mixture_goes_through_its_own_epochs(seed, weights):
    parts = [crop_all([[100 * p + d] for d in range(p + 2)]) for p in range(len(weights))]
    dataset = dataset_of(*zip(parts, weights, strict=True), seed=seed)
    first_tokens = dataset.rows(0, dataset.epoch_size)["tokens"][:, 1]
    for p in range(len(parts)):
        seen, size = first_tokens[first_tokens // 100 == p] % 100, p + 2
        assert len(seen) >= size  # an epoch is one of every part
        for epoch in range(len(seen) // size):
            assert sorted(seen[epoch * size :][:size]) == list(range(size))


def test_equal_parts_have_orders_of_their_own():
    dataset = dataset_of((crop_all(), 1), (crop_all(), 1))
    tokens = dataset.rows(0, 16)["tokens"][:, 1] // 100
    assert (tokens[::2] != tokens[1::2]).any()


@pytest.mark.parametrize("make", [packed, cropped, mixture])
def test_reading_ahead_changes_nothing(make):
    dataset = make()
    for rows in (None, np.array([1, 3])):
        read = list(dataset.batches(3, 9, rows))
        assert len(read) == 6
        for step, batch in enumerate(read, start=3):
            assert_equal(batch, dataset.batch(step, rows))
    assert list(dataset.batches(5, 5)) == []


def test_the_digest_tells_streams_apart():
    one = packed().digest()
    assert one == packed(batch_size=2).digest() == packed().digest()
    other_text = [*DOCUMENTS[:-1], [*DOCUMENTS[-1][:-1], 7]]
    others = [packed(seed=1), cropped(), mixture(), packed(documents=other_text)]
    others.append(dataset_of((pack_all(), 1), identity="another source"))
    assert len({one, *(other.digest() for other in others)}) == 6


@given(seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_of_crops_has_one_of_each_document(seed, epoch):
    dataset = cropped(seed=seed)
    assert dataset.epoch_size == len(DOCUMENTS)
    batch = dataset.rows(epoch * 8, (epoch + 1) * 8)
    assert (batch["tokens"][:, 0] == BOS).all()
    assert sorted(batch["tokens"][:, 1] // 100) == list(range(8))


def test_crops_are_drawn_anew_each_epoch():
    dataset = cropped(documents=[list(range(1000))])
    starts = dataset.rows(0, 40)["tokens"][:, 1]
    assert len(set(starts.tolist())) > 35


def test_a_batch_may_span_epochs():
    dataset = cropped(batch_size=12)
    assert sorted(dataset.batch(0)["tokens"][:8, 1] // 100) == list(range(8))
    assert dataset.batch(0)["tokens"].shape == (12, 6)


def test_bad_inputs():
    with pytest.raises(UserError, match="batch_size is 0; set at least 1"):
        packed(batch_size=0)
    with pytest.raises(UserError, match="data.workers is -1; set 0"):
        dataset_of((pack_all(), 1), workers=-1)
    with pytest.raises(UserError, match="rows 1 to 4 of a batch of 4"):
        packed().batch(0, np.array([1, 4]))
    for make in (packed, cropped):
        with pytest.raises(UserError, match="0 rows to shuffle; give text"):
            make(documents=[])
        with pytest.raises(UserError, match="no row -4 exists"):
            make().batch(-1)
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"the data seed is {seed}; set one from 0"):
            packed(seed=seed)
