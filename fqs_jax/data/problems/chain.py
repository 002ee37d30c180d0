"""Chains of look-ups: a problem sends a symbol through some of the fixed tables f, g, h, ...

    5 f h g = 4                 direct: the answer at once
    5 f h g = : 6 0 4 = 4       worked: the symbol after each look-up, after a marker
    5 f h g = : 2 3 1 = 4       chatter: the marker, but no work
    5 f h g =                   unanswered

Like clock arithmetic (clock.py), but without computation: the tables must be memorized.
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
      seed: random seed of the tables too.
      lengths: numbers of look-ups in a problem.
      size: number of symbols, which are 0 .. size - 1.
      functions: number of tables, which are named f, g, h, ...
      permutations: True = tables are random permutations; False = random functions, which may not
        reach all symbols.
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
        """The value of each function for each symbol: `tables[function][symbol]`."""
        return _tables(self.seed, self.size, self.functions, self.permutations)

    @property
    def answers(self) -> tuple[str, ...]:
        """The symbols that are looked up."""
        return tuple(map(str, range(self.size)))

    @property
    def symbols(self) -> tuple[str, ...]:
        """The answers, the names of the functions, "=" and ":"."""
        return (*self.answers, *_NAMES[: self.functions], self.equals, self.marker)

    def num_problems(self, length: int) -> int:
        """The number of pairs of a start and a sequence of functions."""
        return self.size * self.functions**length

    def problem(self, length: int, number: int) -> Problem:
        """The problem whose functions are the number's last digits and whose start is the rest."""
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
    rng = np.random.default_rng((seed, len(SPLITS)))  # a seed that no split's documents use
    rows = [
        rng.permutation(size) if permutations else rng.integers(size, size=size)
        for _ in range(functions)
    ]
    return tuple(tuple(map(int, row)) for row in rows)
