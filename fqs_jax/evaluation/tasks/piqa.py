"""PIQA (arXiv 1911.11641), two solutions for a goal: `valid.jsonl` and `valid-labels.lst` (0, 1).

The prompt for texts is that of the lm-evaluation-harness.
"""

from __future__ import annotations

from typing import Any

from fqs_jax.evaluation.tasks import records
from fqs_jax.evaluation.tasks.items import Cloze, Item, Task, cloze, lettered


def _parse(where: str, fields: dict[str, Any], label: int | None) -> Item:
    assert label is not None  # the task has labels
    return lettered(*_read(where, fields), label)


def _parse_cloze(where: str, fields: dict[str, Any], label: int | None) -> Cloze:
    assert label is not None
    goal, solutions = _read(where, fields)
    return cloze(where, f"Question: {goal}\nAnswer:", solutions, label)


def _read(where: str, fields: dict[str, Any]) -> tuple[str, list[str]]:
    """The goal and its solutions."""
    goal = records.text(where, fields, "goal")
    return goal, [records.text(where, fields, key) for key in ("sol1", "sol2")]


TASK = Task("piqa", "PIQA", _parse, key="goal", labels=(0, 1))
CLOZE = Task("piqa", "PIQA", _parse_cloze, key="goal", labels=(0, 1))
