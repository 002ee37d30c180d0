"""CommonsenseQA (arXiv 1811.00937), five choices: `dev_rand_split.jsonl` or the hub's layout."""

from __future__ import annotations

from typing import Any

from fqs_jax.evaluation.tasks import records
from fqs_jax.evaluation.tasks.items import LETTERS, Item, Task, lettered
from fqs_jax.runtime.errors import UserError


def _parse(where: str, fields: dict[str, Any], _: int | None) -> Item:
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
    labels = [choice.get("label") for choice in choices]
    if len(labels) < 2 or labels != list(LETTERS[: len(labels)]):
        raise UserError(f"{where}: the choices are labelled {labels}; they must be A, B, C, ...")
    answer = fields.get("answerKey")
    if not answer:
        raise UserError(f"{where}: no 'answerKey'; the test split has none, use the dev split")
    if answer not in labels:
        raise UserError(f"{where}: the answerKey {answer!r} is none of {', '.join(labels)}")
    return lettered(
        stem, [records.text(where, choice, "text") for choice in choices], labels.index(answer)
    )


TASK = Task("csqa", "CommonsenseQA", _parse, key="question")
