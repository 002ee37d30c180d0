"""The order of rows: every epoch whole, no two alike, and nothing remembered."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.order import cropped_dataset, packed_dataset, shuffled_indices
from fqs_jax.data.windows import pack
from fqs_jax.errors import UserError

BOS, EOS, PAD = 1001, 1002, 1003
DOCUMENTS = [list(range(100 * d, 100 * d + 5 + 3 * d)) for d in range(8)]
SEEDS = st.integers(0, 2**32 - 1)


def packed(batch_size=4, seed=0, documents=DOCUMENTS):
    return packed_dataset(
        documents, 6, bos_id=BOS, eos_id=EOS, pad_id=PAD, batch_size=batch_size, seed=seed
    )


def cropped(batch_size=4, seed=0, documents=DOCUMENTS):
    return cropped_dataset(documents, 6, bos_id=BOS, pad_id=PAD, batch_size=batch_size, seed=seed)


def assert_equal(one, other):
    for name in ("tokens", "mask"):
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


def test_far_into_a_run():
    assert 0 <= shuffled_indices(1_000_003, 7)[10**15] < 1_000_003


@pytest.mark.parametrize("make", [packed, cropped])
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


@given(seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_of_packed_rows_is_the_packed_text(seed, epoch):
    dataset = packed(seed=seed)
    size = dataset.epoch_size
    whole = pack(DOCUMENTS, 6, BOS, EOS, PAD)
    assert size == len(whole["tokens"])
    read = dataset.rows(epoch * size, (epoch + 1) * size)
    for name in whole:
        assert sorted(read[name].tolist()) == sorted(whole[name].tolist())


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
    for make in (packed, cropped):
        with pytest.raises(UserError, match="0 rows to shuffle; give text"):
            make(documents=[])
        with pytest.raises(UserError, match="there is no row -4"):
            make().batch(-1)
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"the data seed is {seed}; set one from 0"):
            packed(seed=seed)
