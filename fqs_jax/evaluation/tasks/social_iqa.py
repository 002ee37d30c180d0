"""SocialIQA (arXiv 1904.09728), three choices: `dev.jsonl` and `dev-labels.lst` (1, 2, 3).

The published evaluation joins context and question without a space ("... attacks.What does ...").
`task(join=" ")` puts one there.
"""

from __future__ import annotations

from typing import Any

from fqs_jax.evaluation.tasks import records
from fqs_jax.evaluation.tasks.items import Item, Task, lettered

PUBLISHED_JOIN = ""


def task(join: str = PUBLISHED_JOIN) -> Task:
    """The benchmark, with `join` between context and question."""

    def parse(where: str, fields: dict[str, Any], label: int | None) -> Item:
        assert label is not None  # the task has labels
        question = join.join(records.text(where, fields, key) for key in ("context", "question"))
        options = [records.text(where, fields, f"answer{letter}") for letter in "ABC"]
        return lettered(question, options, label)

    return Task("siqa", "SocialIQA", parse, key="context", labels=(1, 2, 3))
