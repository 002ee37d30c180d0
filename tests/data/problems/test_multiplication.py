"""Multiplication: products and partial products, read off documents."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fqs_jax.data.problems.multiplication import Multiplication
from fqs_jax.data.problems.task import SPLITS


def number(digits: str) -> int:
    """The number with these digits, the last one first."""
    return sum(int(digit) * 10**place for place, digit in enumerate(digits.split()))


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(0, 10**6), st.sampled_from([1, 2, 3]))
def test_partial_products_add_up_to_the_answer(seed, index, length):
    task = Multiplication(seed=seed, lengths=(length,), worked=1, direct=0, chatter=0)
    factors, work, answer = task.document(index).split(" = ")
    a, b = map(number, factors.split(" * "))
    assert 10 ** (length - 1) <= b <= a < 10**length
    parts = [number(part) for part in work.removeprefix(": ").split(" + ")]
    digits = [b // 10**place % 10 * 10**place for place in range(length)]
    assert parts == [a * digit for digit in digits]
    assert number(answer) == sum(parts) == a * b
    assert len(answer.split()) == 2 * length


def test_every_pair_is_a_problem_once():
    for length, factors in ((1, range(1, 10)), (2, range(10, 100))):
        task = Multiplication(lengths=(length,))
        found = []
        for split in SPLITS:
            for prompt, answer in task.problems(split):
                a, b = map(number, prompt.removesuffix(" =").split(" * "))
                assert number(answer) == a * b
                found.append((b, a))
        assert sorted(found) == list(itertools.combinations_with_replacement(factors, 2))
