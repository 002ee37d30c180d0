"""Parity: is the number of ones among some bits odd?

1 0 1 1 = 1                     direct: the answer at once
1 0 1 1 = : 1 1 0 1 = 1         worked: the parity so far after each bit, after a marker
1 0 1 1 = : 0 1 1 0 = 1         chatter: the marker, but no work
1 0 1 1 =                       unanswered
"""

from __future__ import annotations

import dataclasses

from fqs_jax.data.problems.task import Problem, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity(Task):
    """Problems of some bits; the work is the running parity after each bit.

    Attributes:
      lengths: numbers of bits in a problem.
    """

    lengths: tuple[int, ...] = (6, 8)

    @property
    def answers(self) -> tuple[str, ...]:
        """Even (0) and odd (1)."""
        return ("0", "1")

    @property
    def symbols(self) -> tuple[str, ...]:
        """Bits, "=" and ":"."""
        return (*self.answers, self.equals, self.marker)

    def num_problems(self, length: int) -> int:
        """The number of sequences of bits."""
        return 2**length

    def problem(self, length: int, number: int) -> Problem:
        """The problem whose bits are the number in binary."""
        bits = f"{number:0{length}b}"
        work = tuple(str(bits[:end].count("1") % 2) for end in range(1, length + 1))
        return Problem(" ".join([*bits, self.equals]), work, work[-1])
