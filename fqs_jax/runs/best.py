"""The best step of a stage: that with the lowest loss on held-out text, of those that are saved.

The rows of its metrics decide, and nothing else: no file says which step is best.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import folders, metrics_file
from fqs_jax.runs.time_spent import HELD_OUT
from fqs_jax.runtime.errors import UserError

SUFFIX = "@best"  # of the number or name of a stage: its best step instead of its last one
_OTHER = ("event", "step", "text", "time")  # fields of a row that are no losses
_JUDGED = ("nll_mixed", "nll_base")  # the first that a row has decides


def judged(row: Mapping[str, Any]) -> float | None:
    """The loss of a row that decides which step is best; None if it was not finite."""
    return next((row[name] for name in _JUDGED if name in row), None)


def losses(row: Mapping[str, Any]) -> dict[str, Any]:
    """The losses of a row, under the names that they have beside those of training: held_out/FIELD."""
    fields = {key: value for key, value in row.items() if key not in _OTHER}
    return {f"{HELD_OUT}/{key}": value for key, value in fields.items()}


def rows(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of the held-out text that was measured last, in order."""
    found = [line for line in lines if line.get("event") == HELD_OUT]
    return [row for row in found if row.get("text") == found[-1].get("text")]


def step(lines: Iterable[Mapping[str, Any]], saved: Collection[int]) -> int | None:
    """The step with the lowest loss of those that are saved; the first of several, None without any."""
    losses = {row["step"]: judged(row) for row in rows(lines) if row["step"] in saved}
    known = {number: loss for number, loss in losses.items() if loss is not None}
    return min(known, key=known.__getitem__, default=None)


def is_best(lines: Sequence[Mapping[str, Any]]) -> bool:
    """True if the last row on held-out text has a lower loss than all before it."""
    losses = [judged(row) for row in rows(lines)]
    known = [loss for loss in losses[:-1] if loss is not None]
    return bool(losses) and losses[-1] is not None and all(losses[-1] < loss for loss in known)


def find(root: Path, known: list[Stage], which: str) -> tuple[Stage, int | None]:
    """A stage of a working directory, and the step to load of it; None = the newest.

    Args:
      known: the stages that have a checkpoint.
      which: number or name of the stage; with `SUFFIX`, its best step.

    Raises:
      UserError: there is no such stage, or no step of it that is saved was measured.
    """
    name = which.removesuffix(SUFFIX)
    if name.isdecimal() and int(name) not in {stage.number for stage in known}:
        folder = folders.stage_folder(root, int(name))
        if folder.is_dir():
            lacks = "no checkpoint" if (folder / "run.json").exists() else "no run.json"
            raise UserError(
                f"{folder} has {lacks}: python -m fqs_jax.inspect {root} shows what it has"
            )
    stage = stage_lib.find(known, name)
    if not which.endswith(SUFFIX):
        return stage, None
    lines = metrics_file.read_lines(folders.stage_folder(root, stage.number) / "metrics.jsonl")
    found = step(lines, folders.saved_steps(folders.checkpoint_folder(root, stage.number)))
    if found is None:
        raise UserError(
            f"{stage} in {root} has no best step: no saved one was measured on held-out text; leave "
            f"{SUFFIX} out, or train with --config.held_out.every=N"
        )
    return stage, found
