"""Results of a sweep: one file for each cell, and one table over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from fqs_jax.curriculum import objective, resolve, settings
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.evaluation import comparison, comparison_file
from fqs_jax.runs import folders, history
from fqs_jax.runs import source as source_lib
from fqs_jax.runtime import files, inputs
from fqs_jax.sweeps.cells import Cell

RESULT = "result.json"  # in the folder of a cell


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: a model of a variant, over seeds.

    Attributes:
      variant: name of the variant.
      stage: number of the stage.
      model: name of the model.
      kind: group of the model in tables and pictures, such as "thinking".
      planned: number of seeds in the sweep.
      seeds: seeds that are done.
      accuracy: one value for each of them.
      nll: likewise, in nats.
      tokens: text tokens of all training from random parameters to this model, with its teachers.
      flops: FLOPs of that training and of the teachers' scores.
      after_base_flops: the part of them after the plain first stage.
      chance: accuracy of a guess.
    """

    variant: str
    stage: str
    model: str
    kind: str
    planned: int
    seeds: tuple[int, ...] = ()
    accuracy: tuple[float, ...] = ()
    nll: tuple[float, ...] = ()
    tokens: int = 0
    flops: int = 0
    after_base_flops: int = 0
    chance: float = math.nan


def evaluate(cell: Cell) -> dict[str, Any]:
    """Measure the trained stages of a cell, and write its result.json.

    Raises:
      UserError: a stage was not trained.
    """
    rows = [
        comparison_file.as_json(row)
        for row in comparison.compare(cell.folder, timed=False)
        if int(row.stage) in cell.stage_numbers
    ]
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
        "rows": rows,
        "training": {str(number): training_cost(cell, number) for number in cell.stage_numbers},
    }
    files.write_json(cell.folder / RESULT, result)
    return result


def training_cost(cell: Cell, number: int) -> dict[str, int]:
    """Tokens and FLOPs of training a stage and every stage that it is made from, each once.

    These are its start and its teacher, and theirs in turn. The FLOPs of the teachers' scores are
    included. `after_base_flops` leaves out plain first stages.
    """
    source = folders.source_folder(cell.folder)
    runs: dict[int | None, tuple[Stage, ml_collections.ConfigDict]] = {}
    unread = [number]
    while unread:
        number = unread.pop()
        if number not in runs:
            stage, _ = runs[number] = folders.read_run(cell.folder, number)
            teacher_number = stage.teacher if objective.of(stage).has_teacher else None
            unread += [n for n in (stage.start, teacher_number) if n is not None]
    cost = {"tokens": 0, "flops": 0, "after_base_flops": 0}
    for stage, config in runs.values():
        model = source_lib.read_model(source, config)
        recipe = resolve.recipe(config, stage, model)
        thought = None
        if stage.teacher in runs:
            teacher, teacher_config = runs[stage.teacher]
            thought = settings.thought_config(teacher_config, teacher)
        per_step = objective.step_flops(recipe) + objective.teacher_flops(recipe, thought)
        is_base = stage.start is None and stage.objective == "next_token"
        cost["tokens"] += stage.steps * config.batch_size * config.data.seq_len
        cost["flops"] += stage.steps * per_step
        cost["after_base_flops"] += (not is_base) * stage.steps * per_step
    return cost


def read(cell: Cell) -> dict[str, Any] | None:
    """The result of a cell; None if it has none, or the result of another command (`is_stale`)."""
    result = inputs.read_optional_json(cell.folder / RESULT)
    return result if result.get("flags") == cell.flags else None


def is_stale(cell: Cell) -> bool:
    """True if the cell has a result that was made by another command."""
    return (cell.folder / RESULT).exists() and read(cell) is None


def lines(
    cells: Sequence[Cell], results: Sequence[dict[str, Any] | None], show_once: Sequence[int] = ()
) -> list[Line]:
    """The table: a line for each variant and model, in the order of the sweep.

    Args:
      results: one for each cell; None = not done.
      show_once: stages that are shown only for the first variant that has them.
    """
    table: list[Line] = []
    shown: set[int] = set()
    for variant in dict.fromkeys(cell.variant for cell in cells):
        mine = [(c, r) for c, r in zip(cells, results, strict=True) if c.variant == variant]
        hidden = shown & set(show_once)
        done = [result for _, result in mine if result is not None]
        if not done:
            table.append(Line(variant, "", "", "", len(mine)))
            continue
        for stage, name in dict.fromkeys(_key(row) for result in done for row in result["rows"]):
            if int(stage) not in hidden:
                shown.add(int(stage))
                table.append(_line(variant, stage, name, len(mine), done))
    return table


def unlike(
    cells: Sequence[Cell], results: Sequence[dict[str, Any] | None], show_once: Sequence[int]
) -> list[str]:
    """A sentence for each variant and seed whose hidden rows differ from the rows that are shown."""
    shown: dict[tuple[str, int], tuple[str, Any]] = {}
    found: list[str] = []
    for cell, result in zip(cells, results, strict=True):
        for row in (result or {}).get("rows", ()):
            stage, name = _key(row)
            if int(stage) in show_once and row["temperature"] == 1:
                value = (row["accuracy"], row["nll"])
                variant, other = shown.setdefault((name, cell.seed), (cell.variant, value))
                if value != other:
                    found.append(
                        f"{name} of {cell.variant}, seed {cell.seed}, differs from that of {variant}, "
                        f"which is shown: NLL {value[1]:.3f} and {other[1]:.3f}"
                    )
    return found


def _key(row: dict[str, Any]) -> tuple[str, str]:
    """The stage and a name that is equal for all seeds, without the temperature that was fitted for one."""
    name = row["name"]
    if row["temperature"] != 1:
        name = f"{name.rsplit(' at temperature ', 1)[0]} at its best temperature"
    return row["stage"], name


def _line(
    variant: str, stage: str, name: str, planned: int, done: Sequence[dict[str, Any]]
) -> Line:
    found = [(r, row) for r in done for row in r["rows"] if _key(row) == (stage, name)]
    result, first = found[0]
    training = result["training"][stage]
    return Line(
        variant=variant,
        stage=stage,
        model=name,
        kind=first["kind"],
        planned=planned,
        seeds=tuple(result["seed"] for result, _ in found),
        accuracy=tuple(_number(row["accuracy"]) for _, row in found),
        nll=tuple(_number(row["nll"]) for _, row in found),
        tokens=training["tokens"],
        flops=training["flops"],
        after_base_flops=training["after_base_flops"],
        chance=result["chance"],
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def mean(values: Sequence[float]) -> float:
    """Mean over seeds; NaN for none."""
    return float(np.mean(values)) if len(values) else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean over seeds; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def as_json(line: Line) -> dict[str, Any]:
    """A line with its statistics, for JSON: None instead of NaN, which JSON lacks."""
    fields = dataclasses.asdict(line)
    for name in ("accuracy", "nll"):
        values = getattr(line, name)
        fields[f"{name}_mean"] = mean(values)
        fields[f"{name}_standard_error"] = standard_error(values)
    return files.nan_as_none(fields)


def about(
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any] | None],
    show_once: Sequence[int],
    command: str,
) -> list[str]:
    """Notes below the table: commits, the command, and the cells that are missing."""
    commits = sorted({r["commit"] or "unknown" for r in results if r is not None})
    notes = [f"Commit{'s' * (len(commits) > 1)} {', '.join(commits)}; made by: {command}"]
    missing = [str(c) for c, r in zip(cells, results, strict=True) if r is None]
    if missing:
        notes.append(f"Not done, {len(missing)} of {len(cells)}: {', '.join(missing)}")
    return notes + unlike(cells, results, show_once)
