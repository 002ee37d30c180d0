"""Stages that several cells have in common: trained by one of them, and copied by the others.

The settings of a bracket often change one stage only, such as its learning rate. The stages that it is made
from are then the same in all cells of a seed, and often take the longest.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import folders, stages
from fqs_jax.runtime import buckets, leases, paths
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps.cells import Cell

# In a bucket, a copy counts with its last object: one of these, of W/source and of a stage.
_WHOLE = ("origin.json", "run.json")
_STAGE_FIELD = re.compile(r"stage_(\d+)\.")


def copy(cell: Cell, cells: Sequence[Cell]) -> list[str]:
    """Copy the stages of a cell that another has finished with the same settings.

    All are taken from one cell, that with the most, so that a student and its teacher have the same base.
    `launch` compares a copied stage with the cell's own command, as it does with every finished stage.

    Args:
      cells: of the sweep, `cell` among them.

    Returns:
      A sentence for each stage that was copied.
    """
    config = cells_lib.experiment_config(cell.config, cell.overrides[1:])
    rows = {row.number: row for row in stage_lib.rows(config)}
    missing = [
        number
        for number in sorted(cell.stage_numbers)
        if not _is_there(folders.stage_folder(cell.folder, number))
    ]
    shared = {other: _shared(other, cell, missing, rows) for other in cells}
    other = max(cells, key=lambda each: len(shared[each]))
    for number in shared[other]:
        _copy(folders.source_folder(other.folder), folders.source_folder(cell.folder))
        _copy(*(folders.stage_folder(c.folder, number) for c in (other, cell)))
    return [f"{cell}: {rows[number]} is that of {other}" for number in shared[other]]


def _shared(
    other: Cell, cell: Cell, missing: Sequence[int], rows: Mapping[int, Stage]
) -> list[int]:
    """The missing stages that another cell has as this cell needs them, with all that they start from."""
    if other.number == cell.number or (other.seed, other.config) != (cell.seed, cell.config):
        return []
    found: list[int] = []
    for number in missing:
        row = rows[number]
        trained = {n for n in (row.start, row.teacher) if n is not None}
        changed_by = _depends_on(number, rows)
        same = _settings_of(other, changed_by) == _settings_of(cell, changed_by)
        is_its = number in other.stage_numbers and trained <= set(found)
        if same and is_its and stages.is_finished(other.folder, number):
            found.append(number)
    return found


def _depends_on(number: int, rows: Mapping[int, Stage]) -> set[int]:
    """A stage and all whose fields may change it."""
    row = rows[number]
    named = (row.start, row.teacher, row.rows_of, *row.same_steps_as, *row.same_flops_as)
    return {number}.union(*(_depends_on(n, rows) for n in named if n is not None))


def _settings_of(cell: Cell, numbers: set[int]) -> list[str]:
    """The overrides of a cell that may change these stages: all but those of other stages' fields."""
    found = [(_STAGE_FIELD.match(override), override) for override in cell.overrides]
    return [override for field, override in found if field is None or int(field[1]) in numbers]


def _is_there(folder: Path) -> bool:
    """True if the folder of a stage, or W/source, exists; in a bucket, if it is whole."""
    if not paths.is_bucket(folder):
        return folder.exists()
    return any((folder / name).exists() for name in _WHOLE)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder so that it is there whole or not at all."""
    if _is_there(target):
        return
    if paths.is_bucket(target):
        with leases.held(target.parent):  # another process may run the same cell
            if not _is_there(target):
                buckets.delete(target)  # what a copy that was cut off has left
                buckets.copy(source, target, (folders.COMMITTED, *_WHOLE))
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # A stage that shares its rows may be adding scores meanwhile; whoever needs them makes them again.
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*folders.SCORES.values()))
    partial.rename(target)
