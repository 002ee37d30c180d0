"""W/evaluation.json: the last comparison of all stages, which a report shows again."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fqs_jax.evaluation.comparison import Row
from fqs_jax.evaluation.statistics import flat_fields
from fqs_jax.runs import folders
from fqs_jax.runtime import files, inputs, schemas
from fqs_jax.runtime.errors import UserError

NAME = "evaluation.json"
PROBLEMS = "held-out problems"  # the `about` of runs on a built-in task
KINDS = ("base", "thinking", "student", "control")
FLAGS = ("text", "thought_seeds", "seed", "seq_len")  # those that are kept


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
    files.write_json(
        root / NAME, kept._asdict() | {"steps": _steps(root), schemas.FIELD: schemas.COMPARISON}
    )


def read(root: Path) -> Kept | None:
    """The last comparison; None if there is none, it cannot be read, or a stage was trained since.

    Raises:
      UserError: a newer version of this program wrote it.
    """
    if not (root / NAME).exists():
        return None
    try:
        content = inputs.read_json(root / NAME)
    except UserError:
        return None  # damaged: the comparison is made again
    schemas.check(content, schemas.COMPARISON, root / NAME)
    rows, about, flags = content.get("rows"), content.get("about", ""), content.get("flags", {})
    if content.get("steps") != _steps(root) or not _is_text(about):
        return None
    if not isinstance(rows, list) or not rows or not all(map(_is_row, rows)):
        return None
    if not isinstance(flags, dict) or not flags.keys() <= set(FLAGS):
        return None
    if not all(_is_text(value) or _is_count(value) for value in flags.values()):
        return None
    if about == PROBLEMS:
        flags.pop("seq_len", None)  # earlier versions ignored it
    return Kept(rows, about, flags)


def as_json(row: Row) -> dict[str, Any]:
    """The fields of a row by name, see `statistics.flat_fields`; NaN, which JSON lacks, as None."""
    return files.nan_as_none(flat_fields(row))


def _is_row(value: Any) -> bool:
    """True if a value has all fields of a row, each of its type; other fields may be anything."""
    sample = as_json(Row("", ""))
    if not isinstance(value, dict) or not sample.keys() <= value.keys():
        return False
    types = {str: _is_text, int: _is_count}
    if not all(
        types.get(type(default), _is_number)(value[name]) for name, default in sample.items()
    ):
        return False
    accuracy = [value["accuracy"], value["accuracy_low"], value["accuracy_high"]]
    is_share = all(end is not None and 0 <= end <= 1 for end in accuracy)
    return value["kind"] in KINDS and (is_share or accuracy == [None] * 3)


def _is_text(value: Any) -> bool:
    """True for text that can be written again, perhaps as a file's name that is not UTF-8.

    Python stands half a surrogate pair for each other byte of such a name; the rest of them mean nothing.
    """
    try:
        os.fsencode(value)
    except (TypeError, UnicodeEncodeError):
        return False
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    """True for a finite number, and for None, which stands for NaN."""
    return value is None or _is_count(value) or (type(value) is float and math.isfinite(value))


def _steps(root: Path) -> dict[str, int | None]:
    """The step of the newest checkpoint of each stage, by number."""
    return {
        str(stage.number): folders.latest_step(folders.checkpoint_folder(root, stage.number))
        for stage in folders.existing_stages(root)
    }
