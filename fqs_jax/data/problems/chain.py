"""Chains of look-ups: f, g, h, ... are fixed tables, a problem sends a symbol through some of them.

    5 f h g = 4                 direct: the answer at once
    5 f h g = : 6 0 4 = 4       worked: the symbol after each look-up, after a marker
    5 f h g = : 2 3 1 = 4       chatter: the marker, but no work
    5 f h g =                   unanswered

Like the clock (clock.py), but nothing is to be computed: what a table says has to be known by heart.
"""

from __future__ import annotations

import dataclasses
import functools
import string

import numpy as np

from fqs_jax.data.problems.task import SPLITS, Problem, Task, last_digits
from fqs_jax.runtime.errors import UserError

_NAMES = string.ascii_lowercase[5:]  # f to z


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain(Task):
    """Problems `start f1 .. fn`; the work is the symbol after each look-up.

    Attributes:
      seed: decides the tables too.
      lengths: the numbers of look-ups.
      size: symbols are 0 .. size - 1.
      functions: how many tables there are, named f, g, h, ...
      permutations: whether tables are random permutations, or random functions, of which some symbols
        are never a value.
    """

    size: int = 7
    functions: int = 5
    permutations: bool = True

    def __post_init__(self) -> None:
        if self.size < 2:
            raise UserError(f"size is {self.size}; set at least 2")
        if not 1 <= self.functions <= len(_NAMES):
            raise UserError(f"functions is {self.functions}; set 1 to {len(_NAMES)}")
        super().__post_init__()

    @property
    def tables(self) -> tuple[tuple[int, ...], ...]:
        """What each function makes of each symbol."""
        return _tables(self.seed, self.size, self.functions, self.permutations)

    @property
    def answers(self) -> tuple[str, ...]:
        """What is looked up."""
        return tuple(map(str, range(self.size)))

    @property
    def symbols(self) -> tuple[str, ...]:
        """What is looked up, the functions, "=" and ":"."""
        return (*self.answers, *_NAMES[: self.functions], self.equals, self.marker)

    def num_problems(self, length: int) -> int:
        """A start and a sequence of functions make a problem."""
        return self.size * self.functions**length

    def problem(self, length: int, number: int) -> Problem:
        """Functions are the number's last digits, the start is its first."""
        start, chosen = last_digits(number, self.functions, length)
        value, values = start, []
        for function in chosen:
            value = self.tables[function][value]
            values.append(str(value))
        prompt = " ".join([str(start), *(_NAMES[function] for function in chosen), self.equals])
        return Problem(prompt, tuple(values), values[-1])


@functools.lru_cache(maxsize=16)
def _tables(
    seed: int, size: int, functions: int, permutations: bool
) -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng((seed, len(SPLITS)))  # apart from the documents of every split
    rows = [
        rng.permutation(size) if permutations else rng.integers(size, size=size)
        for _ in range(functions)
    ]
    return tuple(tuple(map(int, row)) for row in rows)
