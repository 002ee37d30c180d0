"""The measurements of a trained cell, written into its folder."""

from __future__ import annotations

from typing import Any

from fqs_jax.data import corpus
from fqs_jax.evaluation import comparison, comparison_file
from fqs_jax.runs import folders, history
from fqs_jax.runtime import files
from fqs_jax.sweeps import costs
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.results import RESULT


def evaluate(cell: Cell) -> dict[str, Any]:
    """Measure the trained stages of a cell, and write its result.json.

    Raises:
      UserError: a stage was not trained.
    """
    _, config = folders.read_run(cell.folder, cell.stage_numbers[0])
    task = corpus.built_in_task(config.data, cell.seed)
    assert task is not None  # checked when the sweep was read
    result = {
        "variant": cell.variant,
        "seed": cell.seed,
        "flags": cell.flags,
        "command": cell.command,
        "commit": history.commit(),
        "chance": task.chance,
        "rows": _rows(cell),
        "training": {str(n): costs.training_cost(cell, n) for n in cell.stage_numbers},
    }
    files.write_json(cell.folder / RESULT, result)
    return result


def _rows(cell: Cell) -> list[dict[str, Any]]:
    """The models of a cell on test problems, with their accuracy and NLL on validation problems."""
    rows = comparison.compare(cell.folder, timed=False)
    checks = comparison.compare(cell.folder, timed=False, split="validation")
    by_model = {(check.stage, check.name): check for check in checks}
    found = []
    for row in rows:
        if int(row.stage) in cell.stage_numbers:
            check = by_model.get((row.stage, row.name), comparison.Row(row.stage, row.name))
            values = {"validation_accuracy": check.accuracy.value, "validation_nll": check.nll}
            found.append(comparison_file.as_json(row) | files.nan_as_none(values))
    return found
