"""PIQA (arXiv 1911.11641), two solutions for a goal: `valid.jsonl` and `valid-labels.lst` (0, 1)."""

from __future__ import annotations

from typing import Any

from fqs_jax.evaluation.tasks import records
from fqs_jax.evaluation.tasks.items import Item, Task, lettered


def _parse(where: str, fields: dict[str, Any], label: int | None) -> Item:
    assert label is not None  # the task has labels
    goal = records.text(where, fields, "goal")
    return lettered(goal, [records.text(where, fields, key) for key in ("sol1", "sol2")], label)


TASK = Task("piqa", "PIQA", _parse, key="goal", labels=(0, 1))
