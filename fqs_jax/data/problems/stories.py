"""Stories: short word problems in plain English, for a pretrained model with a tokenizer of its own.

    Anna had five apples. Anna bought three more. Ben took two of them. How many apples were left? =

    direct: six
    worked: : eight six = six
        or: : five plus three is eight , eight minus two is six = six
    chatter: : nine four = six

Numbers are words, from zero to twenty at most: with the space before it, each is one token in most
tokenizers made for English, which figures and their spaces are not.

A problem is its numbers and operations. Every document draws its sentences, people and things anew, so
that its words say nothing of which problem it is. A problem of an evaluation is always told alike, drawn
from the problem and the seed. The further split `new_wording` has the problems of `test`, people and
things included, told in sentences that no document has: what carries over to another way of asking?
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import numpy as np

from fqs_jax.data.problems.story_wordings import KNOWN, NEW, NUMBERS, PEOPLE, THINGS, Wordings
from fqs_jax.data.problems.task import SPLITS, Problem, Task
from fqs_jax.runtime.errors import UserError

LENGTHS = (2, 3, 4)
WORK = ("values", "equations")
NEW_WORDING = "new_wording"
_STARTS = range(2, 10)
_LEAST_LARGEST = max(_STARTS)
_FILLINGS = {"p": PEOPLE, "q": PEOPLE, "s": THINGS, "n": NUMBERS[1:10]}


class Change(NamedTuple):
    """A change: an operation ("plus", "minus" or "double"), its number, and the value after it.

    The number of "double" is 2, which its sentences do not name.
    """

    operation: str
    number: int
    after: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stories(Task):
    """Stories of a number that changes; the work is the number after each change, or equations.

    Attributes:
      seed: random seed of sentences, people and things too.
      lengths: numbers of changes in a story: 2, 3 or 4.
      largest: no number in a problem, its work or its answer is larger; 9 to 20.
      work: form of the work: `equations`, or `values`, the number after each change alone.
    """

    more_splits: ClassVar[tuple[str, ...]] = (NEW_WORDING,)

    lengths: tuple[int, ...] = (2,)
    largest: int = 20
    work: str = "equations"

    def __post_init__(self) -> None:
        if not set(self.lengths) <= set(LENGTHS):
            raise UserError(f"lengths are {self.lengths}; stories have 2, 3 or 4 changes")
        if self.largest not in range(_LEAST_LARGEST, len(NUMBERS)):
            raise UserError(
                f"largest is {self.largest!r}; set {_LEAST_LARGEST} to {len(NUMBERS) - 1}"
            )
        if self.work not in WORK:
            raise UserError(f"work is {self.work!r}; choose from {', '.join(WORK)}")
        super().__post_init__()

    @property
    def answers(self) -> tuple[str, ...]:
        """The words for 0 to `largest`."""
        return NUMBERS[: self.largest + 1]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The numbers, signs and words, with their punctuation, of all problems in all wordings."""
        signs = ("plus", "minus", "times", "is", ",") if self.work == "equations" else ()
        others = sorted({*_words(), *signs} - set(NUMBERS))
        return (*self.answers, *others, self.equals, self.marker)

    def num_problems(self, length: int) -> int:
        """The number of sequences of a start and changes that stay between 0 and `largest`."""
        return sum(_sequences(start, length, self.largest) for start in _STARTS)

    def problem(self, length: int, number: int) -> Problem:
        """The problem of a number: starts in order, then first changes, and so on."""
        return self._told(length, number, KNOWN, self._always(length, number))

    def problems(self, split: str, length: int | None = None) -> list[tuple[str, str]]:
        """All problems of a split, or of one of its lengths: (prompt that ends in "=", answer)."""
        if split != NEW_WORDING:
            return super().problems(split, length)
        told = [
            self._told(n, number, NEW, self._always(n, number))
            for n in (self.lengths if length is None else (length,))
            for number in (self._number_at(n, place) for place in self._places("test", n))
        ]
        return [(prompt, answer) for prompt, _, answer in told]

    def _in_document(self, length: int, place: int, rng: np.random.Generator) -> Problem:
        return self._told(length, self._number_at(length, place), KNOWN, rng)

    def _always(self, length: int, number: int) -> np.random.Generator:
        """The draws that tell a problem outside documents: the same names in all wordings."""
        # A seed that no split's documents use.
        return np.random.default_rng((self.seed, len(SPLITS), length, number))

    def _told(
        self, length: int, number: int, wordings: Wordings, rng: np.random.Generator
    ) -> Problem:
        """A problem in some of these wordings, its sentences, people and things drawn from `rng`."""
        p, other, s = rng.integers((len(PEOPLE), len(PEOPLE) - 1, len(THINGS)))
        names = {
            "p": PEOPLE[p],
            "q": PEOPLE[other + (other >= p)],  # anybody else
            "s": THINGS[s],
        }
        start, changes = _numbers(length, number, self.largest)
        parts = [("opening", start), *((c.operation, c.number) for c in changes), ("question", 0)]
        choices = [getattr(wordings, part) for part, _ in parts]
        drawn = rng.integers([len(choice) for choice in choices])
        sentences = [
            choice[i].format(**names, n=NUMBERS[n])
            for choice, i, (_, n) in zip(choices, drawn, parts, strict=True)
        ]
        work = self._work(start, changes)
        return Problem(" ".join([*sentences, self.equals]), work, NUMBERS[changes[-1].after])

    def _work(self, start: int, changes: tuple[Change, ...]) -> tuple[str, ...]:
        if self.work == "values":
            return tuple(NUMBERS[change.after] for change in changes)
        befores = (start, *(change.after for change in changes))
        work: list[str] = []
        for before, (operation, number, after) in zip(befores, changes, strict=False):
            sign = "times" if operation == "double" else operation
            work += [",", NUMBERS[before], sign, NUMBERS[number], "is", NUMBERS[after]]
        return tuple(work[1:])


@functools.cache
def _changes(value: int, largest: int) -> tuple[Change, ...]:
    """All that can happen to a value."""
    added = [Change("plus", n, value + n) for n in range(1, 10)]
    taken = [Change("minus", n, value - n) for n in range(1, 10)]
    doubled = [Change("double", 2, 2 * value)] if value else []
    return tuple(c for c in (*added, *taken, *doubled) if 0 <= c.after <= largest)


@functools.cache
def _sequences(value: int, length: int, largest: int) -> int:
    """The number of sequences of changes from a value."""
    if length == 0:
        return 1
    return sum(_sequences(c.after, length - 1, largest) for c in _changes(value, largest))


def _numbers(length: int, number: int, largest: int) -> tuple[int, tuple[Change, ...]]:
    """The start and the changes of a problem."""
    for start in _STARTS:
        if number < (count := _sequences(start, length, largest)):
            break
        number -= count
    value, changes = start, []
    for left in reversed(range(length)):
        for change in _changes(value, largest):
            if number < (count := _sequences(change.after, left, largest)):
                break
            number -= count
        value = change.after
        changes.append(change)
    return start, tuple(changes)


@functools.cache
def _words() -> tuple[str, ...]:
    """All words of the sentences, with their punctuation."""
    words = {
        word for wordings in (KNOWN, NEW) for part in wordings for s in part for word in s.split()
    }
    found = {word for word in words if "{" not in word}
    for word in words - found:
        field = word[word.index("{") + 1]
        found |= {word.format(**{field: filling}) for filling in _FILLINGS[field]}
    return tuple(sorted(found))
