"""Multiplication of two numbers, written from the last digit to the first, the direction of carries.

    1 2 * 3 1 = 3 7 2 0                         direct: 21 times 13 is 0273
    1 2 * 3 1 = : 3 6 0 + 0 1 2 0 = 3 7 2 0     worked: 3 times 21 is 063, 10 times 21 is 0210
    1 2 * 3 1 = : 8 1 4 + 5 5 0 2 = 3 7 2 0     chatter: the marker, but no work
    1 2 * 3 1 =                                 unanswered

The only built-in task whose answers have several symbols. All numbers of one length have the same
number of digits, filled up with zeros: answers to factors of n digits have 2n. So their end needs no
mark.
"""

from __future__ import annotations

import dataclasses
import math

from fqs_jax.data.problems.task import Problem, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multiplication(Task):
    """Problems `a * b` with b <= a, so that no problem is another one's mirror image.

    The work is the partial products: a times each digit of b, the last digit first, each shifted by
    leading zeros. Their sum is the answer.

    Attributes:
      lengths: numbers of digits of both factors; leading digits are not 0.
    """

    lengths: tuple[int, ...] = (2,)

    @property
    def answers(self) -> tuple[str, ...]:
        """The digits."""
        return tuple("0123456789")

    @property
    def symbols(self) -> tuple[str, ...]:
        """The digits and the signs."""
        return (*self.answers, "*", "+", self.equals, self.marker)

    def num_problems(self, length: int) -> int:
        """The number of unordered pairs of factors."""
        factors = 9 * 10 ** (length - 1)
        return factors * (factors + 1) // 2

    def problem(self, length: int, number: int) -> Problem:
        """The problem of a number; pairs are ordered as (0, 0), (1, 0), (1, 1), (2, 0), ...

        These are offsets from the smallest factor.
        """
        greater = (math.isqrt(8 * number + 1) - 1) // 2
        a, b = (
            10 ** (length - 1) + offset
            for offset in (greater, number - greater * (greater + 1) // 2)
        )
        prompt = [*_digits(a, length), "*", *_digits(b, length), self.equals]
        work: list[str] = []
        for place, digit in enumerate(_digits(b, length)):
            plus = ["+"] if place else []
            work += plus + _digits(int(digit) * a * 10**place, length + 1 + place)
        return Problem(" ".join(prompt), tuple(work), " ".join(_digits(a * b, 2 * length)))


def _digits(number: int, count: int) -> list[str]:
    """The digits of a number, the last one first."""
    return list(f"{number:0{count}d}"[::-1])
