"""The measurements of a trained cell, written into its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import ml_collections
from jax.sharding import Mesh

from fqs_jax.data import corpus
from fqs_jax.data.sources import documents as documents_lib
from fqs_jax.evaluation import comparison, comparison_file
from fqs_jax.runs import folders, history, loading
from fqs_jax.runtime import files, inputs, paths, schemas, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import costs, outcomes
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.fields import Sweep
from fqs_jax.sweeps.outcomes import Model, Outcome
from fqs_jax.sweeps.results import RESULT

BASES = "bases"  # folder in W: outcomes of checkpoints, which all cells that start from one share


def check(sweep: Sweep) -> None:
    """Read everything that models will be measured on, so that mistakes show before any training.

    Raises:
      UserError: a benchmark or the held-out text cannot be read, or no item is left to report.
    """
    for benchmark in sweep.benchmarks:
        count = len(outcomes.read_items(benchmark))
        if count <= sweep.validation_items:
            raise UserError(
                f"benchmark {benchmark.name} has {count} items, and validation_items is "
                f"{sweep.validation_items}: none is left to report; set fewer"
            )
    if sweep.held_out:
        documents_lib.read_documents(sweep.held_out)


def evaluate(cell: Cell) -> dict[str, Any]:
    """Measure the trained stages of a cell, and write its result.json.

    Raises:
      UserError: a stage was not trained, or a benchmark cannot be read or answered.
    """
    _, config = folders.read_run(cell.folder, cell.stage_numbers[0])
    result = {
        schemas.FIELD: schemas.CELL,
        "variant": cell.variant,
        "seed": cell.seed,
        "flags": cell.flags,
        "command": cell.command,
        "commit": history.commit(),
    }
    training = {str(n): costs.training_cost(cell, n) for n in cell.stage_numbers}
    if config.init_from:
        training["init"] = costs.NOTHING
    if cell.measured_on:
        found = _outcomes(cell, config)
        result |= {
            "measured_on": cell.measured_on,
            "setting": list(cell.setting),
            "training": training,
        }
        result |= {"outcomes": list(map(outcomes.as_json, found))}
        # Without a line for each of its many numbers.
        files.write_text(cell.folder / RESULT, files.json_text(result))
        return result
    task = corpus.built_in_task(config.data, cell.seed)
    assert task is not None  # checked when the sweep was read
    result |= {"chance": task.chance, "rows": _rows(cell, config), "training": training}
    files.write_json(cell.folder / RESULT, result)
    return result


def _rows(cell: Cell, config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    """The models of a cell on test problems, with their accuracy and NLL on validation problems.

    A model at its best temperature, and one on a further split, has none of the latter two. Stages that the
    folder has from elsewhere are left out.
    """
    ours = {"init", *map(str, cell.stage_numbers)}
    mesh = sharding.make_mesh(config.mesh)
    every = comparison.compare(cell.folder, mesh=mesh, timed=False, validation=True)
    rows = [row for row in every if row.stage in ours]
    checks = {row.stage: row for row in rows if row.split == comparison.VALIDATION}
    found = []
    for row in rows:
        if row.split == comparison.VALIDATION:
            continue
        is_own = row.split == comparison.TEST and row.temperature == 1
        check = checks[row.stage] if is_own else comparison.Row(row.stage, row.name)
        values = {"validation_accuracy": check.accuracy.value, "validation_nll": check.nll}
        if row.stage == "init":  # a stage may be named base too
            row = dataclasses.replace(row, name=row.name.replace("base", "checkpoint", 1))
        found.append(comparison_file.as_json(row) | files.nan_as_none(values))
    return found


def _outcomes(cell: Cell, config: ml_collections.ConfigDict) -> list[Outcome]:
    """The outcomes of the checkpoint and of every stage, on all benchmarks and the held-out text."""
    asked = [(benchmark, outcomes.read_items(benchmark)) for benchmark in cell.benchmarks]
    documents = documents_lib.read_documents(cell.held_out) if cell.held_out else []
    mesh = sharding.make_mesh(config.mesh)

    def measured(stage: str, name: str) -> list[Outcome]:
        return _measured(cell, stage, name, asked, documents, config.data.seq_len, mesh)

    items = [outcomes.digest(each) for _, each in asked] + [outcomes.digest(documents)]
    kept = _base_file(cell, config, items)
    if stored := inputs.read_optional_json(kept).get("outcomes"):
        found = list(map(outcomes.from_json, stored))
    else:
        found = measured("init", "base")
        files.make_folder(kept.parent)
        content = files.json_text({"outcomes": list(map(outcomes.as_json, found))})
        files.replace(kept, lambda file: file.write(content.encode()), many_writers=True)
    for number in cell.stage_numbers:
        stage, _ = folders.read_run(cell.folder, number)
        found += measured(str(number), stage.name)
    return found


def _measured(
    cell: Cell,
    stage: str,
    name: str,
    asked: list[tuple[Any, Any]],
    documents: list[str],
    seq_len: int,
    mesh: Mesh,
) -> list[Outcome]:
    """The outcomes of one model."""
    loaded = loading.load(str(cell.folder), stage, mesh=mesh)
    model = Model(stage, name, comparison.kind_of(cell.folder, stage))
    found = []
    for benchmark, items in asked:
        found += outcomes.on_benchmark(loaded, model, benchmark, items)
    if documents:
        found += outcomes.on_text(loaded, model, documents, seq_len)
    return found


def _base_file(cell: Cell, config: ml_collections.ConfigDict, items: list[str]) -> Path:
    """The file of a checkpoint's outcomes, named after all that they depend on."""
    place = str(paths.full(paths.expand(config.init_from)))
    parts = [place, config.compute.to_dict(), config.data.seq_len, cell.measured_on, items]
    whole = json.dumps(parts, sort_keys=True)
    return cell.root / BASES / f"{hashlib.sha256(whole.encode()).hexdigest()[:16]}.json"
