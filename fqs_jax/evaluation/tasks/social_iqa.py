"""SocialIQA (arXiv 1904.09728), three choices: `dev.jsonl` and `dev-labels.lst` (1, 2, 3).

The published evaluation joins context and question without a space ("... attacks.What does ...").
`task(join=" ")` puts one there. The prompt for texts is that of the lm-evaluation-harness, which has one.
"""

from __future__ import annotations

from typing import Any

from fqs_jax.evaluation.tasks import records
from fqs_jax.evaluation.tasks.items import Cloze, Item, Task, cloze, lettered

PUBLISHED_JOIN = ""


def task(join: str = PUBLISHED_JOIN) -> Task[Item]:
    """The benchmark, with `join` between context and question."""

    def parse(where: str, fields: dict[str, Any], label: int | None) -> Item:
        assert label is not None  # the task has labels
        question = join.join(records.text(where, fields, key) for key in ("context", "question"))
        return lettered(question, _options(where, fields), label)

    return Task("siqa", "SocialIQA", parse, key="context", labels=(1, 2, 3))


def _parse_cloze(where: str, fields: dict[str, Any], label: int | None) -> Cloze:
    assert label is not None
    context, question = (records.text(where, fields, key) for key in ("context", "question"))
    return cloze(where, f"Q: {context} {question}\nA:", _options(where, fields), label)


def _options(where: str, fields: dict[str, Any]) -> list[str]:
    return [records.text(where, fields, f"answer{letter}") for letter in "ABC"]


CLOZE = Task("siqa", "SocialIQA", _parse_cloze, key="context", labels=(1, 2, 3))
