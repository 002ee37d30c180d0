"""The models of a folder that a continuation can be watched from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fqs_jax import huggingface
from fqs_jax.data import corpus
from fqs_jax.data.problems.task import Task
from fqs_jax.evaluation import comparison
from fqs_jax.runs import folders, loading
from fqs_jax.runtime import local_copies

BESIDE = ("base", "thinking", "student")  # the kinds that are compared unless others are chosen


class LiveModel(NamedTuple):
    """A model by the stage that `loading.load` wants of it, a name for people, and its kind.

    `stage` is None for a Hugging Face folder; `kind` is that of `comparison.Row`.
    """

    stage: str | None
    label: str
    kind: str


def models(root: Path) -> list[LiveModel]:
    """The models of a working directory, or that of a Hugging Face folder; nothing is loaded.

    Raises:
      UserError: there are none.
    """
    if not folders.is_workdir(root):
        loading.check_folder(root)
        huggingface.read_config(local_copies.of(root))  # one error now rather than in the browser
        return [LiveModel(None, root.name, "base")]
    stages = loading.trained_stages(root)
    _, config = folders.read_run(root, stages[0].number)
    imported = [LiveModel("init", "initial model", "base")] if config.init_from else []
    return imported + [
        LiveModel(str(s.number), str(s), comparison.kind_of(root, str(s.number))) for s in stages
    ]


def first_shown(found: Sequence[LiveModel]) -> LiveModel:
    """The last model that thinks; without one, the last of all."""
    return [*found[-1:], *(model for model in found if model.kind == "thinking")][-1]


def compared(found: Sequence[LiveModel]) -> list[LiveModel]:
    """A model of each kind in BESIDE that there is: the first base, the last that thinks, a student."""
    chosen = []
    for kind in BESIDE:
        own = [model for model in found if model.kind == kind]
        chosen += own[-1:] if kind == "thinking" else own[:1]
    return chosen


def task(root: Path) -> Task | None:
    """The run's built-in task, or None."""
    if not folders.is_workdir(root):
        return None
    _, config = folders.read_run(root, loading.trained_stages(root)[0].number)
    return corpus.built_in_task(config.data, config.seed)
