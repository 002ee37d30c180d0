"""Word problems in a few English sentences with two to four steps, similar to those of GSM8K.

    direct: the answer at once
      Anna has 9 apples . Anna buys 4 more and gives 3 to Ben . how many apples are left ? = 10
    worked: an equation for each step, after a marker
      Anna has 9 apples . Anna buys 4 more and gives 3 to Ben . how many apples are left ? =
      : 9 + 4 is 13 . 13 - 3 is 10 . = 10
    chatter: the same with random numbers in the equations
    unanswered: the question and "="

(A document is one line.) A problem is a template and its numbers. Its people and things are drawn from
the problem and the seed, so a held-out problem is never a training problem with other names. Words,
signs and whole numbers from 0 to 100 are one token each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import NamedTuple

import numpy as np

from fqs_jax.data.problems.task import SPLITS, Problem, Task
from fqs_jax.runtime.errors import UserError

MAX_NUMBER = 100  # the largest number in any problem, its work and its answer
PEOPLE = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo")
THINGS = ("apples", "books", "cards", "cookies", "pencils", "shells", "stamps", "toys")
_OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}


class Template(NamedTuple):
    """A text and its solution.

    text: the question, with {p} and {q} for people, {s} and {t} for things, {a}, {b}, ... for numbers.
    ranges: ranges of those numbers, in order.
    steps: one operation each; x, y, z are the results of the first, second and third step.
    """

    text: str
    ranges: tuple[range, ...]
    steps: tuple[str, ...]


_TWO_STEPS = (
    Template(
        "{p} has {a} {s} . {p} buys {b} more and gives {c} to {q} . how many {s} are left ?",
        (range(7, 15), range(2, 10), range(2, 8)),
        ("a + b", "x - c"),
    ),
    Template(
        "{p} has {a} boxes with {b} {s} in each box . {q} takes {c} {s} . how many {s} are left ?",
        (range(2, 9), range(4, 10), range(2, 8)),
        ("a * b", "x - c"),
    ),
    Template(
        "{p} has {a} {s} . {q} has {b} times as many . how many {s} do {p} and {q} have together ?",
        (range(2, 17), range(2, 6)),
        ("a * b", "x + a"),
    ),
    Template(
        "{p} has {a} {s} and gives half of them to {q} . then {p} buys {b} more . "
        "how many {s} does {p} have ?",
        (range(4, 42, 2), range(2, 10)),
        ("a / 2", "x + b"),
    ),
    Template(
        "{p} earns {a} coins each day . after {b} days {p} buys {s} for {c} coins . "
        "how many coins are left ?",
        (range(3, 10), range(2, 9), range(2, 6)),
        ("a * b", "x - c"),
    ),
)

_THREE_STEPS = (
    Template(
        "{p} has {a} {s} . {q} has {b} more than {p} . {p} and {q} together give {c} {s} away . "
        "how many {s} are left ?",
        (range(3, 11), range(2, 8), range(2, 8)),
        ("a + b", "x + a", "y - c"),
    ),
    Template(
        "{p} buys {a} boxes with {b} {s} in each box . {q} buys {c} boxes with {d} {s} in each box . "
        "how many {s} do {p} and {q} have together ?",
        (range(2, 7), range(2, 8), range(2, 7), range(2, 8)),
        ("a * b", "c * d", "x + y"),
    ),
    Template(
        "{p} has {a} {s} . {p} buys {b} more each day for {c} days and then gives {d} to {q} . "
        "how many {s} does {p} have ?",
        (range(2, 10), range(2, 7), range(2, 8), range(2, 6)),
        ("b * c", "a + x", "y - d"),
    ),
    Template(
        "{p} has {a} {s} and {q} has {b} times as many . {q} gives half of them to {p} . "
        "how many {s} does {p} have ?",
        (range(4, 26, 2), range(2, 5)),
        ("a * b", "x / 2", "a + y"),
    ),
)

_FOUR_STEPS = (
    Template(
        "{p} has {a} boxes with {b} {s} in each box . {q} has {c} times as many {s} . "
        "{p} and {q} together give {d} {s} away . how many {s} are left ?",
        (range(2, 6), range(2, 6), range(2, 4), range(2, 10)),
        ("a * b", "x * c", "x + y", "z - d"),
    ),
    Template(
        "{p} buys {a} {s} for {b} coins each and {c} {t} for {d} coins each . {p} had {e} coins . "
        "how many coins are left ?",
        (range(2, 5), range(2, 6), range(2, 5), range(2, 6), range(45, 50)),
        ("a * b", "c * d", "x + y", "e - z"),
    ),
    Template(
        "{p} has {a} {s} . {q} has {b} more than {p} . then {p} buys {c} more and {q} gives {d} away . "
        "how many {s} do {p} and {q} have together ?",
        (range(3, 10), range(2, 7), range(2, 7), range(2, 5)),
        ("a + b", "a + c", "x - d", "y + z"),
    ),
)

TEMPLATES = {2: _TWO_STEPS, 3: _THREE_STEPS, 4: _FOUR_STEPS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordProblems(Task):
    """Word problems; the work is an equation for each step.

    Attributes:
      seed: random seed of people and things too.
      lengths: numbers of steps in a problem: 2, 3 or 4.
    """

    lengths: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self) -> None:
        if not set(self.lengths) <= set(TEMPLATES):
            raise UserError(f"lengths are {self.lengths}; word problems have 2, 3 or 4 steps")
        super().__post_init__()

    @property
    def answers(self) -> tuple[str, ...]:
        """All numbers from 0 to 100."""
        return tuple(map(str, range(MAX_NUMBER + 1)))

    @property
    def symbols(self) -> tuple[str, ...]:
        """The numbers, signs and words of all problems."""
        return (*self.answers, *_words(), *_OPERATIONS, self.equals, self.marker)

    def num_problems(self, length: int) -> int:
        """The number of pairs of a template and its numbers."""
        return sum(map(_size, TEMPLATES[length]))

    def problem(self, length: int, number: int) -> Problem:
        """The problem of a number: templates in order, the last of their numbers varies fastest."""
        # A seed that no split's documents use.
        rng = np.random.default_rng((self.seed, len(SPLITS), length, number))
        p, q = rng.choice(PEOPLE, size=2, replace=False)
        s, t = rng.choice(THINGS, size=2, replace=False)
        template, known = _numbers(length, number)
        text = template.text.format(p=p, q=q, s=s, t=t, **known)
        work: list[str] = []
        for name, step in zip("xyzw", template.steps, strict=False):
            left, sign, right = step.split()
            a, b = (known[side] if side in known else int(side) for side in (left, right))
            known[name] = result = _OPERATIONS[sign](a, b)
            work += [str(a), sign, str(b), "is", str(result), "."]
        return Problem(f"{text} {self.equals}", tuple(work), str(result))


def _size(template: Template) -> int:
    return math.prod(map(len, template.ranges))


def _numbers(length: int, number: int) -> tuple[Template, dict[str, int]]:
    """The template of a problem, and its numbers by name."""
    templates = iter(TEMPLATES[length])
    template = next(templates)
    while number >= _size(template):
        number -= _size(template)
        template = next(templates)
    sizes = [len(values) for values in template.ranges]
    places = np.unravel_index(number, sizes)
    chosen = [values[int(place)] for values, place in zip(template.ranges, places, strict=True)]
    return template, dict(zip("abcde", chosen, strict=False))


@functools.cache
def _words() -> tuple[str, ...]:
    texts = [template.text for templates in TEMPLATES.values() for template in templates]
    found = {word for text in texts for word in text.split() if not word.startswith("{")}
    return tuple(sorted(found | {"is", ".", *PEOPLE, *THINGS}))
