"""W/evaluation.json: the last comparison of all stages, so that a report need not repeat it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fqs_jax import checkpoints, files, workdir
from fqs_jax.comparison import Row
from fqs_jax.errors import UserError

NAME = "evaluation.json"


def write(root: Path, rows: Sequence[Row], about: str = "") -> None:
    """Keep rows; NaN becomes null.

    Args:
      about: what was measured on, for people.
    """
    content = {"about": about, "steps": _steps(root), "rows": [as_json(row) for row in rows]}
    data = json.dumps(content, indent=1).encode()
    files.replace(root / NAME, lambda file: file.write(data))


def read(root: Path) -> tuple[list[dict[str, Any]], str] | None:
    """Rows with the fields of `Row` and perhaps more, and what they were measured on; None if there are
    none, they cannot be read, or a stage was trained since."""
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
    return rows, str(content.get("about", ""))


def as_json(row: Row) -> dict[str, Any]:
    """A row's fields; NaN, which JSON lacks, as None."""
    fields = dataclasses.asdict(row)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in fields.items()}


def _steps(root: Path) -> dict[str, int | None]:
    """Of each stage, which checkpoint is its newest."""
    return {
        str(stage.number): checkpoints.latest_step(
            workdir.stage_folder(root, stage.number) / "checkpoints"
        )
        for stage in workdir.existing_stages(root)
    }
