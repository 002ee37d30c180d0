"""Word problems: read by an interpreter of this test's own, which lets happen what sentences say."""

import operator
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fqs_jax.data.problems.task import SPLITS
from fqs_jax.data.problems.word_problems import MAX_NUMBER, PEOPLE, THINGS, WordProblems
from fqs_jax.runtime.errors import UserError

WHO = f"({'|'.join(PEOPLE)})"
THING = f"(?:{'|'.join(THINGS)})"
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class Story:
    """The things that people have, sentence by sentence."""

    def __init__(self):
        self.have: dict[str, int] = {}
        self.first = self.subject = ""
        self.wage = self.spent = 0
        self.given: int | None = None

    def tell(self, clause: str) -> None:
        clause = clause.removeprefix("then ")
        if found := re.match(f"{WHO} (?!and )", clause):
            self.subject = found[1]
            self.first = self.first or found[1]
            clause = clause[found.end() :]
        pattern = re.sub(r"\d+", "N", re.sub(WHO, "WHO", re.sub(THING, "THINGS", clause)))
        n, m = (list(map(int, re.findall(r"\d+", clause))) + [0, 0])[:2]
        others = re.findall(WHO, clause)
        have, me = self.have, self.subject
        match pattern:
            case "has N THINGS":
                have[me] = n
            case "has N boxes with N THINGS in each box" | "buys N boxes with N THINGS in each box":
                have[me] = n * m
            case "has N times as many" | "has N times as many THINGS":
                have[me] = n * have[self.first]
            case "has N more than WHO":
                have[me] = n + have[others[0]]
            case "buys N more":
                have[me] += n
            case "buys N more each day for N days":
                have[me] += n * m
            case "gives N to WHO":
                have[me] -= n
                have[others[0]] = have.get(others[0], 0) + n
            case "gives half of them to WHO":
                assert have[me] % 2 == 0
                half = have[me] // 2
                have[me] = half
                have[others[0]] = have.get(others[0], 0) + half
            case "gives N away":
                have[me] -= n
            case "takes N THINGS":
                have[self.first] -= n
            case "WHO and WHO together give N THINGS away":
                self.given = n
            case "earns N coins each day":
                self.wage = n
            case "after N days WHO buys THINGS for N coins":
                have[others[0]] = self.wage * n - m
            case "buys N THINGS for N coins each" | "N THINGS for N coins each":
                self.spent += n * m
            case "had N coins":
                have[me] = n - self.spent
            case _:
                raise AssertionError(f"nobody knows what {pattern!r} means")

    def answer(self, question: str) -> int:
        if found := re.fullmatch(f"how many {THING} do {WHO} and {WHO} have together", question):
            return self.have[found[1]] + self.have[found[2]]
        if found := re.fullmatch(f"how many {THING} does {WHO} have", question):
            return self.have[found[1]]
        assert re.fullmatch(f"how many (coins|{THING}) are left", question)
        return self.have[self.first] if self.given is None else sum(self.have.values()) - self.given


def solve(prompt: str) -> int:
    *sentences, question = prompt.removesuffix(" ? =").split(" . ")
    story = Story()
    for sentence in sentences:
        for clause in re.split(f" and (?!{WHO} together)", sentence)[::2]:
            story.tell(clause)
    return story.answer(question)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_every_answer_is_what_happens(length):
    task = WordProblems(lengths=(length,))
    problems = [pair for split in SPLITS for pair in task.problems(split)]
    assert len(problems) > 1000
    for prompt, answer in problems:
        assert int(answer) == solve(prompt), prompt
        assert 0 < int(answer) <= MAX_NUMBER


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(0, 10**6), st.sampled_from(SPLITS))
def test_equations_are_true_and_lead_to_the_answer(seed, index, split):
    task = WordProblems(seed=seed, worked=1, direct=0, chatter=0)
    prompt, work, answer = task.document(index, split).split(" = ")
    assert int(answer) == solve(f"{prompt} =")
    known = {int(number) for number in re.findall(r"\d+", prompt)} | {2}  # of halves
    steps = re.findall(r"(\d+) ([-+*/]) (\d+) is (\d+) \.", work)
    assert work == ": " + " ".join(f"{a} {sign} {b} is {c} ." for a, sign, b, c in steps)
    assert 2 <= len(steps) <= 4
    for a, sign, b, c in steps:
        assert OPERATIONS[sign](int(a), int(b)) == int(c)
        assert {int(a), int(b)} <= known
        known.add(int(c))
    assert steps[-1][-1] == answer


def test_held_out_problems_are_no_known_ones_under_other_names():
    task, seen = WordProblems(), set()
    for split in SPLITS:
        nameless = {
            re.sub(WHO, "WHO", re.sub(THING, "THINGS", prompt))
            for prompt, _ in task.problems(split)
        }
        assert not seen & nameless
        seen |= nameless
    assert len(seen) == sum(map(task.num_problems, task.lengths))


def test_people_are_two_and_all_occur():
    found = [re.findall(WHO, prompt) for prompt, _ in WordProblems().problems("test")]
    assert {name for names in found for name in names} == set(PEOPLE)
    assert {len(set(names)) for names in found} == {1, 2}


def test_lengths_that_have_templates():
    with pytest.raises(UserError, match=r"lengths are \(5,\); word problems have 2, 3 or 4 steps"):
        WordProblems(lengths=(5,))
