"""GSM8K (arXiv 2110.14168), school mathematics with numbers as answers: `test.jsonl`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from fqs_jax.evaluation.tasks import records
from fqs_jax.evaluation.tasks.items import Item, Task
from fqs_jax.runtime.errors import UserError

_MARK = "####"  # before the final number of a worked answer


def question(item: Item) -> str:
    """The question of an item, without the "Q:" and "A:" around it."""
    return item.prompt.removeprefix("Q: ").removesuffix("\nA:")


def number(item: Item) -> Decimal:
    """The right answer of an item."""
    return Decimal(item.answer.strip().replace(",", ""))


def _parse(where: str, fields: dict[str, Any], label: int | None) -> Item:
    del label  # the answer is a field
    asked = records.text(where, fields, "question")
    _, mark, answer = records.text(where, fields, "answer").rpartition(_MARK)
    # Blanks around the number, such as a newline at the end, are no part of the answer.
    item = Item(f"Q: {asked}\nA:", f" {answer.strip()}", (), "number")
    try:
        if not mark or not number(item).is_finite():
            raise InvalidOperation
    except InvalidOperation:
        raise UserError(f"{where}: the answer does not end in '{_MARK} NUMBER'") from None
    return item


TASK = Task("gsm8k", "GSM8K", _parse, key="question")
