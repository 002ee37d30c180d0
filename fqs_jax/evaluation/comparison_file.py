"""W/evaluation.json: the last comparison of all stages, which a report shows again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fqs_jax.evaluation.comparison import Row
from fqs_jax.evaluation.statistics import flat_fields
from fqs_jax.runs import folders
from fqs_jax.runtime import files, inputs
from fqs_jax.runtime.errors import UserError

NAME = "evaluation.json"
PROBLEMS = "held-out problems"  # the `about` of runs on a built-in task


class Kept(NamedTuple):
    """A comparison as it is kept.

    rows: the fields of `Row` by name, perhaps with more, NaN as None. about: the text or problems that
    were evaluated, for people. flags: flags of `evaluate` that were not at their defaults, by name.
    """

    rows: list[dict[str, Any]]
    about: str
    flags: dict[str, Any]


def write(
    root: Path, rows: Sequence[Row], about: str = "", flags: dict[str, Any] | None = None
) -> None:
    """Write the comparison of a working directory, with the newest checkpoint of each stage."""
    kept = Kept([as_json(row) for row in rows], about, flags or {})
    files.write_json(root / NAME, kept._asdict() | {"steps": _steps(root)})


def read(root: Path) -> Kept | None:
    """The last comparison; None if there is none, it cannot be read, or a stage was trained since."""
    if not (root / NAME).exists():
        return None
    try:
        content = inputs.read_json(root / NAME)
    except UserError:
        return None  # damaged: the comparison is made again
    rows = content.get("rows")
    if content.get("steps") != _steps(root) or not isinstance(rows, list):
        return None
    needed = flat_fields(Row("", "")).keys()
    if not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        return None
    flags = content.get("flags")
    return Kept(rows, str(content.get("about", "")), flags if isinstance(flags, dict) else {})


def as_json(row: Row) -> dict[str, Any]:
    """The fields of a row by name, see `statistics.flat_fields`; NaN, which JSON lacks, as None."""
    return files.nan_as_none(flat_fields(row))


def _steps(root: Path) -> dict[str, int | None]:
    """The step of the newest checkpoint of each stage, by number."""
    return {
        str(stage.number): folders.latest_step(
            folders.stage_folder(root, stage.number) / "checkpoints"
        )
        for stage in folders.existing_stages(root)
    }
