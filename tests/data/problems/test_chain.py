"""Chains of look-ups: their answers, read off documents alone."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fqs_jax.data.problems.chain import Chain
from fqs_jax.data.problems.task import SPLITS
from fqs_jax.runtime.errors import UserError

seeds = st.integers(0, 1000)


def look_ups(task: Chain) -> dict[tuple[str, str], str]:
    """Every table as far as worked documents show it: (function, symbol) -> symbol."""
    shown: dict[tuple[str, str], str] = {}
    for document in task.documents(400):
        prompt, work, answer = document.split(" = ")
        start, *functions = prompt.split()
        colon, *values = work.split()
        assert colon == ":" and len(values) == len(functions) and values[-1] == answer
        for function, before, after in zip(functions, [start, *values], values, strict=False):
            assert shown.setdefault((function, before), after) == after
    return shown


@settings(max_examples=10)
@given(seeds, st.booleans())
def test_worked_documents_show_fixed_tables_that_answer_every_problem(seed, permutations):
    task = Chain(seed=seed, permutations=permutations, worked=1, direct=0, chatter=0)
    shown = look_ups(task)
    for split in SPLITS:
        for prompt, answer in task.problems(split):
            value, *functions, equals = prompt.split()
            assert equals == "=" and set(functions) <= set("fghij")
            for function in functions:
                value = shown[function, value]
            assert value == answer


def test_tables_are_permutations_unless_asked():
    task = Chain(size=11, functions=3)
    assert all(sorted(table) == list(range(11)) for table in task.tables)
    tables = Chain(size=11, functions=3, permutations=False).tables
    assert any(len(set(table)) < 11 for table in tables)
    assert {value for table in tables for value in table} <= set(range(11))


def test_tables_follow_the_seed():
    assert Chain(seed=1).tables == Chain(seed=1, lengths=(4,)).tables != Chain(seed=2).tables


def test_permutations_spread_the_answers_evenly():
    task = Chain(lengths=(3,))
    every = [answer for split in SPLITS for _, answer in task.problems(split)]
    assert set(collections.Counter(every).values()) == {5**3}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": 1}, "size is 1; set at least 2"),
        ({"functions": 0}, "functions is 0; set 1 to 21"),
        ({"functions": 22}, "functions is 22; set 1 to 21"),
        ({"lengths": (12,)}, "length 12 has 1708984375 problems"),
    ],
)
def test_bad_fields(fields, said):
    with pytest.raises(UserError) as caught:
        Chain(**fields)
    assert said in str(caught.value) and "\n" not in str(caught.value)
