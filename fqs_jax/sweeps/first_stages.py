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
    """Copy the stages of a cell that others have finished with the same settings.

    `launch` compares a copied stage with the cell's own command, as it does with every finished stage.

    Args:
      cells: of the sweep, `cell` among them.

    Returns:
      A sentence for each stage that was copied.
    """
    config = cells_lib.experiment_config(cell.config, cell.overrides[1:])
    rows = {row.number: row for row in stage_lib.rows(config)}
    notes = []
    for number in sorted(cell.stage_numbers):
        if _is_there(folders.stage_folder(cell.folder, number)):
            continue
        made_from = _made_from(number, rows)
        for other in cells:
            if _has(other, cell, made_from):
                _copy(folders.source_folder(other.folder), folders.source_folder(cell.folder))
                _copy(*(folders.stage_folder(c.folder, number) for c in (other, cell)))
                notes.append(f"{cell}: {rows[number]} is that of {other}")
                break
    return notes


def _made_from(number: int, rows: Mapping[int, Stage]) -> set[int]:
    """A stage and all that it depends on."""
    row = rows[number]
    named = (row.start, row.teacher, row.rows_of, *row.same_steps_as, *row.same_flops_as)
    return {number}.union(*(_made_from(n, rows) for n in named if n is not None))


def _has(other: Cell, cell: Cell, numbers: set[int]) -> bool:
    """True if another cell has finished these stages as this cell needs them."""
    if other.number == cell.number or not numbers <= set(other.stage_numbers):
        return False
    if (other.seed, other.config) != (cell.seed, cell.config):
        return False
    same = _settings_of(other, numbers) == _settings_of(cell, numbers)
    return same and all(stages.is_finished(other.folder, n) for n in numbers)


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
    shutil.copytree(source, partial)
    partial.rename(target)
