"""The user's own multiple-choice items: each line {"prompt": ..., "choices": [...], "answer": ...}.

Choices continue the prompt exactly as written, spaces included. The answer is the text of the right
choice or its number, counted from 0. Blanks around the text of the answer do not matter.
"""

from __future__ import annotations

from typing import Any

from fqs_jax.data.sources import text_files
from fqs_jax.evaluation.tasks import records
from fqs_jax.evaluation.tasks.items import Cloze, Item, Task
from fqs_jax.runtime.errors import UserError, printable


def _parse(where: str, fields: dict[str, Any], _: int | None) -> Item:
    prompt = records.text(where, fields, "prompt")
    choices, answer = fields.get("choices"), fields.get("answer")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
        raise UserError(f"{where}: 'choices' must be a list of texts that are not empty")
    choices = [text_files.whole(choice, "choices", where) for choice in choices]
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise UserError(f"{where}: 'choices' must be two or more, all different")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        answer = choices[answer]
    if isinstance(answer, str) and answer not in choices:
        alike = [choice for choice in choices if choice.strip() == answer.strip()]
        answer = alike[0] if len(alike) == 1 else answer
    if not isinstance(answer, str) or answer not in choices:
        raise UserError(
            f"{where}: the answer {printable(str(answer), 40)!r} is neither one of the choices nor a "
            f"number from 0 to {len(choices) - 1}"
        )
    return Item(prompt, answer, tuple(choices), "text")


def _parse_cloze(where: str, fields: dict[str, Any], label: int | None) -> Cloze:
    item = _parse(where, fields, label)
    return Cloze(item.prompt, item.choices, item.choices.index(item.answer), delimiter="")


TASK = Task("choices", "choices", _parse, key="prompt")
CLOZE = Task("choices", "choices", _parse_cloze, key="prompt")
