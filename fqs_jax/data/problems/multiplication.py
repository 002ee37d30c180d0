"""Multiplication of two numbers, digits from the last to the first, so that carries go with the text.

    1 2 * 3 1 = 3 7 2 0                         direct: 21 times 13 is 0273
    1 2 * 3 1 = : 3 6 0 + 0 1 2 0 = 3 7 2 0     worked: 3 times 21 is 063, 10 times 21 is 0210
    1 2 * 3 1 = : 8 1 4 + 5 5 0 2 = 3 7 2 0     chatter: the marker, but no work
    1 2 * 3 1 =                                 unanswered

The one built-in task whose answers are several symbols. All numbers of one length have equally many
digits, filled up with zeros: 2n in an answer to factors of n digits, so that nothing has to tell where
it ends.
"""

from __future__ import annotations

import dataclasses
import math

from fqs_jax.data.problems.task import Problem, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multiplication(Task):
    """Problems `a * b` with b at most a, so that no problem is another one's mirror image.

    The work is a times each digit of b, the last one first, with a zero before for each place it
    stands higher; their sum is the answer.

    Attributes:
      lengths: the digits of both factors, of which the first is not 0.
    """

    lengths: tuple[int, ...] = (2,)

    @property
    def answers(self) -> tuple[str, ...]:
        """Digits, of which answers consist."""
        return tuple("0123456789")

    @property
    def symbols(self) -> tuple[str, ...]:
        """Digits and signs."""
        return (*self.answers, "*", "+", self.equals, self.marker)

    def num_problems(self, length: int) -> int:
        """Pairs in which order does not matter."""
        factors = 9 * 10 ** (length - 1)
        return factors * (factors + 1) // 2

    def problem(self, length: int, number: int) -> Problem:
        """Pairs by the greater factor: (0, 0), (1, 0), (1, 1), (2, 0), ... above the least factor."""
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
    """The last digit first."""
    return list(f"{number:0{count}d}"[::-1])
