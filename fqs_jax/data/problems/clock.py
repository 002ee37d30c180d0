"""Clock arithmetic: a built-in task on which thinking helps even a tiny model.

    5 +1 *3 = 4                 direct: the answer at once
    5 +1 *3 = : 6 4 = 4         worked: the work is shown after a marker
    5 +1 *3 = : 2 0 = 4         chatter: the marker, but no work
    5 +1 *3 =                   unanswered

A small model quickly learns the worked form, but hardly learns the direct one. A thought before the
answer gives it room for the work that worked documents show.
"""

from __future__ import annotations

import dataclasses
import re

from fqs_jax.data.problems.task import Problem, Task, check_distinct, last_digits
from fqs_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock(Task):
    """Problems `start op1 .. opn` modulo a small number; the work is the value after each operation.

    The work of a longer problem may contain the steps of a shorter one in another split, but never
    that problem's prompt.

    Attributes:
      lengths: numbers of operations in a problem.
      modulus: size of the clock; numbers are 0 .. modulus - 1.
      operations: the operations, each "+", "-" or "*" and a number.
    """

    modulus: int = 7
    operations: tuple[str, ...] = ("+1", "+3", "*2", "*3", "-2")

    def __post_init__(self) -> None:
        if self.modulus < 2:
            raise UserError(f"modulus is {self.modulus}; set at least 2")
        if not self.operations or not all(re.fullmatch(r"[-+*]\d+", op) for op in self.operations):
            raise UserError(f"operations are {self.operations}; write each like +1, -2 or *3")
        check_distinct("operations", self.operations)
        super().__post_init__()

    @property
    def answers(self) -> tuple[str, ...]:
        """All numbers."""
        return tuple(map(str, range(self.modulus)))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Numbers, operations, "=" and ":"."""
        return (*self.answers, *self.operations, self.equals, self.marker)

    def num_problems(self, length: int) -> int:
        """The number of pairs of a start and a sequence of operations."""
        return self.modulus * len(self.operations) ** length

    def problem(self, length: int, number: int) -> Problem:
        """The problem whose operations are the number's last digits and whose start is the rest."""
        start, digits = last_digits(number, len(self.operations), length)
        operations = [self.operations[digit] for digit in digits]
        value, values = start, []
        for operation in operations:
            operand = int(operation[1:])
            value = {"+": value + operand, "-": value - operand, "*": value * operand}[operation[0]]
            value %= self.modulus
            values.append(str(value))
        prompt = " ".join([str(start), *operations, self.equals])
        return Problem(prompt, tuple(values), values[-1])
