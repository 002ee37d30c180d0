"""CommonsenseQA (arXiv 1811.00937), five choices: `dev_rand_split.jsonl` or the hub's layout.

The lm-evaluation-harness asks for letters alone. The prompt for texts is the one of its ARC tasks, and of
OLMES (arXiv 2406.08446) for this benchmark in cloze form.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fqs_jax.evaluation.tasks import records
from fqs_jax.evaluation.tasks.items import LETTERS, Cloze, Item, Task, cloze, lettered
from fqs_jax.runtime.errors import UserError, printable


class _Asked(NamedTuple):
    """A question, the texts of its choices, and the number of the right one."""

    stem: str
    texts: list[str]
    right: int


def _parse(where: str, fields: dict[str, Any], _: int | None) -> Item:
    return lettered(*_read(where, fields))


def _parse_cloze(where: str, fields: dict[str, Any], _: int | None) -> Cloze:
    asked = _read(where, fields)
    return cloze(where, f"Question: {asked.stem.strip()}\nAnswer:", asked.texts, asked.right)


def _read(where: str, fields: dict[str, Any]) -> _Asked:
    question = fields.get("question")
    if isinstance(question, dict):  # the original files
        stem, choices = records.text(where, question, "stem"), question.get("choices")
    else:
        stem, choices = records.text(where, fields, "question"), fields.get("choices")
    if isinstance(choices, dict):  # on the hub: a list of labels and a list of texts
        marks, texts = choices.get("label"), choices.get("text")
        if isinstance(marks, list) and isinstance(texts, list) and len(marks) == len(texts):
            choices = [{"label": a, "text": b} for a, b in zip(marks, texts, strict=True)]
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UserError(f"{where}: no list of 'choices'; is this a file of CommonsenseQA?")
    labels = [_label(choice.get("label")) for choice in choices]
    if len(labels) < 2 or not _in_order(labels):
        shown = printable(str([choice.get("label") for choice in choices]), 200)
        raise UserError(f"{where}: the choices are labelled {shown}; they must be A, B, C, ...")
    answer = _label(fields.get("answerKey"))
    if not answer:
        raise UserError(f"{where}: no 'answerKey'; the test split has none, use the dev split")
    if answer not in labels:
        shown = printable(repr(fields["answerKey"]), 40)
        raise UserError(f"{where}: the answerKey {shown} is none of {', '.join(labels)}")
    texts = [records.text(where, choice, "text") for choice in choices]
    return _Asked(stem, texts, labels.index(answer))


def _label(value: Any) -> str:
    """A label as an upper-case letter or a digit, whichever way it is written; "" if there is none."""
    return "" if value is None else str(value).strip().upper()


def _in_order(labels: list[str]) -> bool:
    """True for A, B, C, ... and for 1, 2, 3, ..."""
    count = len(labels)
    return count <= len(LETTERS) and labels in (
        list(LETTERS[:count]),
        [str(n) for n in range(1, count + 1)],
    )


TASK = Task("csqa", "CommonsenseQA", _parse, key="question")
CLOZE = Task("csqa", "CommonsenseQA", _parse_cloze, key="question")
