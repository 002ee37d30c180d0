"""The contents of a working directory as a table and lines, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from fqs_jax.reporting import goodput
from fqs_jax.reporting.inventory import Checkpoint, Contents, StageContents
from fqs_jax.runs import time_spent
from fqs_jax.runs.time_spent import Spent
from fqs_jax.runtime import progress, sizes

_COLUMNS = (
    "stage",
    "name",
    "objective",
    "steps",
    "made from",
    "checkpoints",
    "size",
    "last metrics",
)


def table(contents: Contents) -> Table:
    """A row for each stage."""
    found = Table()
    for column in _COLUMNS:
        found.add_column(column, justify="right" if column in ("stage", "size") else "left")
    for stage in contents.stages:
        found.add_row(
            str(stage.number),
            stage.name or "?",
            stage.objective or "?",
            f"{stage.step:,} of {stage.steps:,}" if stage.name else f"{stage.step:,}",
            "\n".join(stage.made_from),
            ", ".join(_saved(one, stage.best) for one in stage.checkpoints) or "none",
            sizes.shown(stage.bytes),
            _metrics(stage),
        )
    return found


def title(contents: Contents) -> str:
    """The line above the table: the size of everything, and the initial model."""
    count = len(contents.stages)
    stages = f"{count} stage{'s' * (count != 1)}"
    parameters = [stage.parameters for stage in contents.stages if stage.parameters]
    model = f", {max(parameters):,} parameters" if parameters else ""
    whole = f"{contents.root}: {stages}, {sizes.shown(contents.bytes)}{model}"
    return f"{whole}; initial model: {contents.initial_model}"


def lines(contents: Contents) -> Iterator[str]:
    """The lines below the table: where the time went, exports, what was set aside, and all damage."""
    if spent := _spent(contents):
        yield goodput.line(spent)
    if contents.exports:
        yield f"exported folders in it: {', '.join(contents.exports)}"
    for stage in contents.stages:
        if stage.set_aside:
            yield (
                f"stage {stage.number} has set aside {', '.join(stage.set_aside)}: found damaged earlier, "
                "and safe to remove"
            )
    yield from contents.damages()


def as_json(contents: Contents) -> dict[str, Any]:
    """The contents as a JSON object; the fields are those of `Contents` and its parts."""
    stages = [
        dataclasses.asdict(stage)
        | {
            "checkpoints": [one._asdict() for one in stage.checkpoints],
            "spent": goodput.as_json(stage.spent),
        }
        for stage in contents.stages
    ]
    return {
        "workdir": str(contents.root),
        "initial_model": contents.initial_model,
        "bytes": contents.bytes,
        "stages": stages,
        "spent": goodput.as_json(_spent(contents)),
        "exports": list(contents.exports),
        "damage": list(contents.damages()),
    }


def _spent(contents: Contents) -> Spent | None:
    return time_spent.together(stage.spent for stage in contents.stages)


def _saved(checkpoint: Checkpoint, best: int | None) -> str:
    remarks = " (best)" * (checkpoint.step == best) + " (damaged)" * bool(checkpoint.damage)
    return f"{checkpoint.step:,}{remarks}"


def _metrics(stage: StageContents) -> str:
    """The steps of the last row of metrics and of the last one on held-out text, and their losses."""
    if not stage.metrics:
        return "none"
    measured = f"\nheld out, {_losses(stage.held_out)}" if stage.held_out else ""
    return _losses(stage.metrics) + measured


def _losses(row: Mapping[str, Any]) -> str:
    return f"step {row['step']:,}: " + (", ".join(progress.losses(row)) or "no finite loss")
