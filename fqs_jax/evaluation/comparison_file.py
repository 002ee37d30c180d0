"""W/evaluation.json: the last comparison of all stages, so that a report need not repeat it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fqs_jax.evaluation.comparison import Row
from fqs_jax.runs import folders
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError

NAME = "evaluation.json"
PROBLEMS = "held-out problems"  # what runs on a built-in task are measured on


class Kept(NamedTuple):
    """rows have the fields of `Row` and perhaps more, NaN as None; about: what was measured on, for people;
    flags: of `evaluate`, those that made them, by name."""

    rows: list[dict[str, Any]]
    about: str
    flags: dict[str, Any]


def write(
    root: Path, rows: Sequence[Row], about: str = "", flags: dict[str, Any] | None = None
) -> None:
    """Keep rows: see `Kept`."""
    kept = Kept([as_json(row) for row in rows], about, flags or {})
    files.write_json(root / NAME, kept._asdict() | {"steps": _steps(root)})


def read(root: Path) -> Kept | None:
    """What was kept; None if nothing was, it cannot be read, or a stage was trained since."""
    if not (root / NAME).exists():
        return None
    try:
        content = files.read_json(root / NAME)
    except UserError:
        return None  # a cache that is damaged is no cache
    rows = content.get("rows")
    if content.get("steps") != _steps(root) or not isinstance(rows, list):
        return None
    needed = {field.name for field in dataclasses.fields(Row)}
    if not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        return None
    flags = content.get("flags")
    return Kept(rows, str(content.get("about", "")), flags if isinstance(flags, dict) else {})


def as_json(row: Row) -> dict[str, Any]:
    """A row's fields; NaN, which JSON lacks, as None."""
    return files.nan_as_none(dataclasses.asdict(row))


def _steps(root: Path) -> dict[str, int | None]:
    """Of each stage, which checkpoint is its newest."""
    return {
        str(stage.number): folders.latest_step(
            folders.stage_folder(root, stage.number) / "checkpoints"
        )
        for stage in folders.existing_stages(root)
    }
