"""Clock arithmetic: a task made here, on which a tiny model can be seen to gain from thinking.

    5 +1 *3 = 4                 direct: the answer at once
    5 +1 *3 = : 6 4 = 4         worked: the work is shown after a marker
    5 +1 *3 = : 2 0 = 4         chatter: the marker, but no work
    5 +1 *3 =                   unanswered

A small model soon learns the worked form, and the direct one hardly at all. A thought before the
answer is room to do the work that it has seen done.
"""

from __future__ import annotations

import dataclasses
import re

from fqs_jax.data.problems.task import Problem, Task, check_distinct, last_digits
from fqs_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock(Task):
    """Problems `start op1 .. opn` modulo a small number; the work is the value after each operation.

    The work of a longer problem may pass through the steps of a shorter one of another split; the
    prompt of that one is never shown.

    Attributes:
      lengths: the numbers of operations.
      modulus: numbers are 0 .. modulus - 1.
      operations: each "+", "-" or "*" and a number.
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
        """A start and a sequence of operations make a problem."""
        return self.modulus * len(self.operations) ** length

    def problem(self, length: int, number: int) -> Problem:
        """Operations are the number's last digits, the start is its first."""
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
