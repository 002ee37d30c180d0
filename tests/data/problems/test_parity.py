"""Parity: running sums modulo 2, read off documents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.problems.parity import Parity
from fqs_jax.data.problems.task import SPLITS
from fqs_jax.runtime.errors import UserError


@given(st.integers(0, 100), st.integers(0, 10**6), st.sampled_from(SPLITS))
def test_worked_documents_carry_the_parity_along(seed, index, split):
    task = Parity(seed=seed, worked=1, direct=0, chatter=0)
    bits, work, answer = task.document(index, split).split(" = ")
    parity, running = 0, []
    for bit in bits.split():
        parity ^= int(bit)
        running.append(str(parity))
    assert work == " ".join([":", *running]) and answer == str(parity)
    assert len(running) in (6, 8)


def test_every_sequence_of_bits_is_a_problem():
    found = [pair for split in SPLITS for pair in Parity(lengths=(5,)).problems(split)]
    expected = {}
    for number in range(32):
        bits = [number >> place & 1 for place in range(5)]
        expected[" ".join(map(str, bits)) + " ="] = str(sum(bits) % 2)
    assert len(found) == 32 and dict(found) == expected


def test_too_many_bits():
    with pytest.raises(UserError, match="length 24 has 16777216 problems"):
        Parity(lengths=(24,))
