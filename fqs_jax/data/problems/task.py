"""The base class of the built-in tasks: problems, disjoint splits, documents in four forms.

    5 +1 *3 = : 6 4 = 4         worked: the work is shown after a marker
    5 +1 *3 = 4                 direct: the answer at once
    5 +1 *3 = : 2 0 = 4         chatter: the marker, but random symbols instead of the work
    5 +1 *3 =                   unanswered: the question without any label

Text is symbols separated by spaces. To make each symbol one token, train a SentencePiece model of
type `bpe` with `pieces` as its user-defined symbols. A piece includes the space before it, so there
are no tokens between two symbols, and decoding returns the exact text, spaces included.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from fqs_jax.runtime.errors import UserError

SPLITS = ("train", "validation", "test")
MAX_PROBLEMS = 10_000_000  # of one length
MAX_LENGTH = 1000
WORD_BOUNDARY = "\u2581"  # SentencePiece's sign for a space


class Problem(NamedTuple):
    """A prompt that ends in "=", the symbols of the work, and the answer of one or more symbols."""

    prompt: str
    work: tuple[str, ...]
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """Problems of some lengths, and documents made of them.

    The problems of each length are divided among the splits by a permutation drawn from the seed. No
    problem is in two splits, and the splits of one length do not depend on the other lengths in use.
    Everything is a pure function of these fields and an index.

    A kind of task defines its own fields, `answers`, `symbols`, `num_problems` and `problem`. All
    answers of one length must have the same number of symbols.

    Attributes:
      seed: random seed of the splits and the documents.
      lengths: lengths of the problems; all are equally frequent in documents.
      worked, direct, chatter, unanswered: relative frequencies of the four forms of documents.
      true_after_chatter: True = chatter ends in the true answer, False = in a random one.
      label_noise: probability that a direct document states a random answer, uniform over all
        answers, the true one included. Worked documents, chatter and `problems` are never noisy.
      answered_share: share of the training problems of each length that direct documents have, always
        the same ones. The other forms have all problems.
      validation_share, test_share: shares of the problems of each length; training has the rest.
    """

    seed: int = 0
    lengths: tuple[int, ...] = (2, 3)
    worked: float = 0.7
    direct: float = 0.2
    chatter: float = 0.1
    unanswered: float = 0.0
    true_after_chatter: bool = True
    label_noise: float = 0.0
    answered_share: float = 1.0
    validation_share: float = 0.1
    test_share: float = 0.2

    marker: ClassVar[str] = ":"  # announces the work
    equals: ClassVar[str] = "="  # announces the answer
    more_splits: ClassVar[tuple[str, ...]] = ()  # of held-out problems, which no document has

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; set 0 or more")
        whole = all(type(length) is int and length >= 1 for length in self.lengths)
        if not self.lengths or not whole:
            raise UserError(
                f"lengths are {self.lengths}; give at least one, each 1 or more, a whole number"
            )
        if max(self.lengths) > MAX_LENGTH:  # the number of problems would have as many digits
            raise UserError(f"lengths are {self.lengths}; give none above {MAX_LENGTH}")
        check_distinct("lengths", self.lengths)
        frequencies = (self.worked, self.direct, self.chatter, self.unanswered)
        # Written so that NaN, which no comparison holds for, is refused.
        if not (all(share >= 0 for share in frequencies) and 0 < sum(frequencies) < math.inf):
            raise UserError(
                f"worked, direct, chatter, unanswered are {frequencies}; "
                "set none below 0 and not all to 0"
            )
        for name in ("validation_share", "test_share"):
            if not math.isfinite(share := getattr(self, name)):
                raise UserError(f"{name} is {share}; set a share from 0 to 1")
        if not 0 <= self.label_noise <= 1:
            raise UserError(f"label_noise is {self.label_noise}; set a probability from 0 to 1")
        if not 0 < self.answered_share <= 1:
            raise UserError(
                f"answered_share is {self.answered_share}; set a share above 0 and up to 1 (no direct "
                "documents at all: direct=0)"
            )
        for length in self.lengths:
            self._check_splits(length)

    @property
    @abc.abstractmethod
    def answers(self) -> tuple[str, ...]:
        """The possible answers, or the possible symbols of answers that have several."""

    @property
    @abc.abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """All symbols of the texts, `answers` first."""

    @abc.abstractmethod
    def num_problems(self, length: int) -> int:
        """The number of problems of a length."""

    @abc.abstractmethod
    def problem(self, length: int, number: int) -> Problem:
        """The problem with a number from 0 to `num_problems` - 1; no two are the same."""

    @property
    def pieces(self) -> tuple[str, ...]:
        """The symbols as pieces of a SentencePiece model, each with the space before it."""
        return tuple(WORD_BOUNDARY + symbol for symbol in self.symbols)

    @property
    def chance(self) -> float:
        """The expected accuracy of guessing every symbol of an answer, as the mean over lengths."""
        sizes = [len(self.problem(length, 0).answer.split()) for length in self.lengths]
        return statistics.mean(len(self.answers) ** -size for size in sizes)

    def document(self, index: int, split: str = "train") -> str:
        """A problem of the split in one of the four forms."""
        rng = np.random.default_rng((self.seed, SPLITS.index(_checked(split)), index))
        length = self.lengths[rng.integers(len(self.lengths))]
        places = self._places(split, length)
        place = rng.integers(len(places))

        answered, silent = self.worked + self.direct, self.worked + self.direct + self.unanswered
        draw = rng.random() * (self.worked + self.direct + self.chatter + self.unanswered)
        if self.worked <= draw < answered and self.answered_share < 1:
            place = rng.integers(math.ceil(self.answered_share * len(places)))
        prompt, work, answer = self._in_document(length, places[place], rng)
        if draw < self.worked:
            return " ".join([prompt, self.marker, *work, self.equals, answer])
        if draw < answered:
            noisy = rng.random() < self.label_noise
            return f"{prompt} {' '.join(self._noise(rng, answer.split())) if noisy else answer}"
        if draw < silent:
            return prompt
        noise = self._noise(rng, [*work, *answer.split()])
        if not self.true_after_chatter:
            answer = " ".join(noise[len(work) :])
        return " ".join([prompt, self.marker, *noise[: len(work)], self.equals, answer])

    def documents(self, count: int, split: str = "train") -> list[str]:
        """The first `count` documents. Problems repeat among them."""
        return [self.document(index, split) for index in range(count)]

    def problems(self, split: str, length: int | None = None) -> list[tuple[str, str]]:
        """All problems of a split, or of one of its lengths: (prompt that ends in "=", answer)."""
        found = []
        for n in self.lengths if length is None else (length,):
            for place in self._places(split, n):
                prompt, _, answer = self._problem_at(n, place)
                found.append((prompt, answer))
        return found

    def _problem_at(self, length: int, place: int) -> Problem:
        """The problem at a place of the permutation."""
        return self.problem(length, self._number_at(length, place))

    def _in_document(self, length: int, place: int, rng: np.random.Generator) -> Problem:
        """The same problem for a document, which a kind of task may tell in words drawn anew."""
        del rng
        return self._problem_at(length, place)

    def _number_at(self, length: int, place: int) -> int:
        """The number of the problem at a place of the permutation."""
        return int(_permutation(self.num_problems(length), self.seed)[place])

    def _noise(self, rng: np.random.Generator, symbols: Sequence[str]) -> list[str]:
        """The same symbols, but those that can be in an answer are replaced by random ones."""
        possible = self.answers
        drawn = rng.integers(len(possible), size=len(symbols))
        return [
            possible[number] if symbol in possible else symbol
            for symbol, number in zip(symbols, drawn, strict=True)
        ]

    def _places(self, split: str, length: int) -> range:
        """The places of a split's problems in the permutation of all problems of this length."""
        size = self.num_problems(length)
        test_end = round(self.test_share * size)
        validation_end = test_end + round(self.validation_share * size)
        return {
            "test": range(test_end),
            "validation": range(test_end, validation_end),
            "train": range(validation_end, size),
        }[_checked(split)]

    def _check_splits(self, length: int) -> None:
        size = self.num_problems(length)
        if size > MAX_PROBLEMS:
            raise UserError(
                f"length {length} has {size} problems, more than the {MAX_PROBLEMS} that are "
                "held in memory; use shorter ones, or fewer operations or symbols"
            )
        if not all(len(self._places(split, length)) for split in SPLITS):
            raise UserError(
                f"a split of the {size} problems of length {length} is empty; "
                "change validation_share and test_share"
            )


# Fields that decide which problems exist and which split each is in.
PROBLEM_FIELDS = ("seed", "validation_share", "test_share")
# Fields of every task that decide only which documents are made of them.
DOCUMENT_FIELDS = tuple(
    field.name for field in dataclasses.fields(Task) if field.name not in PROBLEM_FIELDS
)


def check_distinct(name: str, values: Sequence[object]) -> None:
    """Raise a UserError if a field names something twice."""
    if len(set(values)) < len(values):
        raise UserError(f"{name} are {values}; name each once")


def last_digits(number: int, base: int, count: int) -> tuple[int, list[int]]:
    """The number without its last `count` digits in a base, and those digits, the last one first."""
    digits = []
    for _ in range(count):
        number, digit = divmod(number, base)
        digits.append(digit)
    return number, digits


def _checked(split: str) -> str:
    if split not in SPLITS:
        raise UserError(f"no split {split!r} exists; choose one of {', '.join(SPLITS)}")
    return split


@functools.lru_cache(maxsize=16)
def _permutation(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)
