"""The benchmarks by name, asked by letters and numbers as published, or by the texts of their options."""

from __future__ import annotations

from fqs_jax.evaluation.tasks import choices, commonsense_qa, gsm8k, piqa, social_iqa
from fqs_jax.evaluation.tasks.items import Cloze, Item, Task

_PUBLISHED = (commonsense_qa.TASK, piqa.TASK, gsm8k.TASK, choices.TASK)
TEXTS: dict[str, Task[Cloze]] = {
    task.name: task for task in (commonsense_qa.CLOZE, piqa.CLOZE, social_iqa.CLOZE, choices.CLOZE)
}


def published(name: str, siqa_join: str = social_iqa.PUBLISHED_JOIN) -> Task[Item]:
    """The task of a name, in its published form.

    Args:
      siqa_join: what stands between the context and the question of SIQA.
    """
    if name == "siqa":
        return social_iqa.task(siqa_join)
    return next(task for task in _PUBLISHED if task.name == name)
