"""Clock arithmetic: a task made here, on which a tiny model can be seen to gain from thinking.

    5 +1 *3 = 4                 direct: the answer at once
    5 +1 *3 = : 6 4 = 4         worked: the work is shown after a marker
    5 +1 *3 = : 2 0 = 4         chatter: the marker, but no work

A small model soon learns the worked form, and the direct one hardly at all. A thought before the
answer is room to do the work that it has seen done.

Every task of this kind has the same few attributes: `symbols`, `pieces`, `marker`, `equals`,
`document`, `documents`, `problems`. Text is symbols separated by spaces. To make each symbol one
token, train a SentencePiece model of type `bpe` with `pieces` as its user-defined symbols: a piece
takes in the space before it, so nothing stands between two symbols, and decoding gives the text
back, spaces and all.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import ClassVar

import numpy as np

from fqs_jax.errors import UserError

SPLITS = ("train", "validation", "test")
MAX_PROBLEMS = 10_000_000  # of one length
WORD_BOUNDARY = "\u2581"  # what SentencePiece writes for a space


@dataclasses.dataclass(frozen=True)
class Clock:
    """Problems `start op1 .. opn` modulo a small number, and documents that state their answers.

    A problem is (start, operations). The problems of each length are dealt out to the splits by a
    permutation drawn from the seed: no problem is in two splits, and the splits of one length do
    not depend on which other lengths are in use. (The work of a longer problem may pass through
    the steps of a shorter one of another split; the prompt of that one is never shown.)
    Everything is a pure function of these fields and an index.

    Attributes:
      seed: decides the splits and the documents.
      lengths: the numbers of operations, all equally frequent in documents.
      modulus: numbers are 0 .. modulus - 1.
      operations: each "+", "-" or "*" and a number.
      worked, direct, chatter: relative frequencies of the three forms of documents.
      true_after_chatter: whether chatter ends in the true answer or in a random number.
      validation_share, test_share: parts of the problems of each length; training has the rest.
    """

    seed: int = 0
    lengths: tuple[int, ...] = (2, 3)
    modulus: int = 7
    operations: tuple[str, ...] = ("+1", "+3", "*2", "*3", "-2")
    worked: float = 0.7
    direct: float = 0.2
    chatter: float = 0.1
    true_after_chatter: bool = True
    validation_share: float = 0.1
    test_share: float = 0.2

    marker: ClassVar[str] = ":"  # announces the work
    equals: ClassVar[str] = "="  # announces the answer

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; set 0 or more")
        if self.modulus < 2:
            raise UserError(f"modulus is {self.modulus}; set at least 2")
        if not self.operations or not all(re.fullmatch(r"[-+*]\d+", op) for op in self.operations):
            raise UserError(f"operations are {self.operations}; write each like +1, -2 or *3")
        if not self.lengths or min(self.lengths) < 1:
            raise UserError(f"lengths are {self.lengths}; give at least one, each 1 or more")
        for name, values in (("lengths", self.lengths), ("operations", self.operations)):
            if len(set(values)) < len(values):
                raise UserError(f"{name} are {values}; name each once")
        frequencies = (self.worked, self.direct, self.chatter)
        if min(frequencies) < 0 or sum(frequencies) == 0:
            raise UserError(
                f"worked, direct, chatter are {frequencies}; set none below 0 and not all to 0"
            )
        for length in self.lengths:
            self._check_splits(length)

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols of the texts; the first `modulus` are the possible answers."""
        numbers = tuple(map(str, range(self.modulus)))
        return (*numbers, *self.operations, self.equals, self.marker)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The symbols as a SentencePiece model is to know them, each with the space before it."""
        return tuple(WORD_BOUNDARY + symbol for symbol in self.symbols)

    def document(self, index: int, split: str = "train") -> str:
        """A problem of the split and its answer, in one of the three forms."""
        rng = np.random.default_rng((self.seed, SPLITS.index(_known(split)), index))
        length = self.lengths[rng.integers(len(self.lengths))]
        places = self._places(split, length)
        start, operations = self._problem(length, places[rng.integers(len(places))])
        steps = self._steps(start, operations)

        head, answer = [_prompt(start, operations)], steps[-1]
        draw = rng.random() * (self.worked + self.direct + self.chatter)
        if draw < self.worked:
            head += [self.marker, *steps, self.equals]
        elif draw >= self.worked + self.direct:
            *noise, other_answer = map(str, rng.integers(self.modulus, size=length + 1))
            head += [self.marker, *noise, self.equals]
            answer = answer if self.true_after_chatter else other_answer
        return " ".join([*head, answer])

    def documents(self, count: int, split: str = "train") -> list[str]:
        """The first `count` documents. Problems repeat among them."""
        return [self.document(index, split) for index in range(count)]

    def problems(self, split: str, length: int | None = None) -> list[tuple[str, str]]:
        """All problems of a split, or those of one length: (prompt that ends in "=", answer)."""
        found = []
        for n in self.lengths if length is None else (length,):
            for place in self._places(split, n):
                start, operations = self._problem(n, place)
                found.append((_prompt(start, operations), self._steps(start, operations)[-1]))
        return found

    def _num_problems(self, length: int) -> int:
        return self.modulus * len(self.operations) ** length

    def _places(self, split: str, length: int) -> range:
        """Where the problems of the split are in the permutation of all of this length."""
        size = self._num_problems(length)
        test_end = round(self.test_share * size)
        validation_end = test_end + round(self.validation_share * size)
        return {
            "test": range(test_end),
            "validation": range(test_end, validation_end),
            "train": range(validation_end, size),
        }[_known(split)]

    def _problem(self, length: int, place: int) -> tuple[int, list[str]]:
        """The start and the operations of the problem at a place of the permutation."""
        number = int(_permutation(self._num_problems(length), self.seed)[place])
        operations = []
        for _ in range(length):
            number, operation = divmod(number, len(self.operations))
            operations.append(self.operations[operation])
        return number, operations

    def _steps(self, start: int, operations: list[str]) -> list[str]:
        """The value after each operation; the last one is the answer."""
        value, steps = start, []
        for operation in operations:
            operand = int(operation[1:])
            value = {"+": value + operand, "-": value - operand, "*": value * operand}[operation[0]]
            value %= self.modulus
            steps.append(str(value))
        return steps

    def _check_splits(self, length: int) -> None:
        size = self._num_problems(length)
        if size > MAX_PROBLEMS:
            raise UserError(
                f"length {length} has {size} problems, more than the {MAX_PROBLEMS} that are "
                "kept in memory; use shorter ones or fewer operations"
            )
        if not all(len(self._places(split, length)) for split in SPLITS):
            raise UserError(
                f"a split of the {size} problems of length {length} is empty; "
                "change validation_share and test_share"
            )


def _prompt(start: int, operations: list[str]) -> str:
    return " ".join([str(start), *operations, Clock.equals])


def _known(split: str) -> str:
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")
    return split


@functools.lru_cache(maxsize=16)
def _permutation(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)
