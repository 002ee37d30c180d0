"""Results of a sweep: one file for each cell, and one table over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from fqs_jax.runtime import files, inputs, schemas
from fqs_jax.sweeps import brackets
from fqs_jax.sweeps.cells import Cell, by_variant
from fqs_jax.sweeps.choosing import Score

RESULT = "result.json"  # in the folder of a cell


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: a model of a variant, over seeds.

    Attributes:
      variant: name of the variant.
      stage: number of the stage, or "init" for the checkpoint that all start from.
      model: name of the model.
      kind: group of the model in tables and pictures, such as "thinking".
      planned: number of seeds in the sweep.
      seeds: seeds that are done.
      accuracy: one value for each of them.
      nll: likewise, in nats.
      validation_accuracy, validation_nll: the same on validation problems; NaN where a result of an
        earlier version lacks them.
      tokens: positions of rows of all training from random parameters to this model, with its teachers.
      flops: FLOPs of that training and of the teachers' scores.
      after_base_flops: the part of them after the plain first stage.
      chance: accuracy of a guess.
      setting: the setting of the variant's bracket, as text; "" = it has none.
      is_at_edge: it was chosen, and is the least or greatest of its bracket.
    """

    variant: str
    stage: str
    model: str
    kind: str
    planned: int
    seeds: tuple[int, ...] = ()
    accuracy: tuple[float, ...] = ()
    nll: tuple[float, ...] = ()
    validation_accuracy: tuple[float, ...] = ()
    validation_nll: tuple[float, ...] = ()
    tokens: int = 0
    flops: int = 0
    after_base_flops: int = 0
    chance: float = math.nan
    setting: str = ""
    is_at_edge: bool = False


def read(cell: Cell) -> dict[str, Any] | None:
    """The result of a cell; None if it has none, or that of another command or of other benchmarks
    (`is_stale`).

    Raises:
      UserError: a newer version of this program wrote it.
    """
    result = inputs.read_optional_json(cell.folder / RESULT)
    schemas.check(result, schemas.CELL, cell.folder / RESULT)
    is_own = result.get("flags") == cell.flags and result.get("measured_on", {}) == cell.measured_on
    return result if is_own else None


def is_stale(cell: Cell) -> bool:
    """True if the cell has a result that was made by another command, or with other benchmarks."""
    return (cell.folder / RESULT).exists() and read(cell) is None


def score(cell: Cell, result: dict[str, Any] | None) -> Score | None:
    """The validation score by which the setting of a bracket's cell is judged; None = not done."""
    if result is None or cell.judged is None:
        return None
    for row in result["rows"]:
        if row["stage"] == str(cell.judged) and row["temperature"] == 1:
            return Score(*(_number(row.get(f"validation_{name}")) for name in ("accuracy", "nll")))
    return Score(math.nan, math.nan)


def lines(
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any] | None],
    show_once: Sequence[int] = (),
    edges: Container[str] = (),
) -> list[Line]:
    """The table: a line for each variant and model, in the order of the sweep.

    Args:
      cells: of each variant, those of one setting.
      results: one for each cell; None = not done.
      show_once: stages that are shown only for the first variant that has them.
      edges: variants whose chosen setting is at the edge of its bracket.
    """
    table: list[Line] = []
    shown: set[str] = set()
    once = _shown_once(show_once)
    for variant, mine in by_variant(cells, results).items():
        hidden = shown & once
        done = [result for _, result in mine if result is not None]
        if not done:
            table.append(Line(variant, "", "", "", len(mine)))
            continue
        setting = brackets.text(mine[0][0].setting)
        for stage, name in dict.fromkeys(_key(row) for result in done for row in result["rows"]):
            if stage not in hidden:
                shown.add(stage)
                line = _line(variant, stage, name, len(mine), done)
                table.append(
                    dataclasses.replace(line, setting=setting, is_at_edge=variant in edges)
                )
    return table


def _shown_once(stages: Sequence[int]) -> set[str]:
    """The stages whose rows are shown for one variant; a checkpoint is the same for all."""
    return {"init", *map(str, stages)}


def unlike(
    cells: Sequence[Cell], results: Sequence[dict[str, Any] | None], show_once: Sequence[int]
) -> list[str]:
    """A sentence for each variant and seed whose hidden rows differ from the rows that are shown."""
    shown: dict[tuple[str, int], tuple[str, Any]] = {}
    found: list[str] = []
    for cell, result in zip(cells, results, strict=True):
        for row in (result or {}).get("rows", ()):
            stage, name = _key(row)
            if stage in _shown_once(show_once) and row["temperature"] == 1:
                value = (row["accuracy"], _number(row["nll"]))
                variant, other = shown.setdefault((name, cell.seed), (cell.variant, value))
                if value != other:
                    found.append(
                        f"{name} of {cell.variant}, seed {cell.seed}, differs from that of {variant}: "
                        f"NLL {value[1]:.3f} and {other[1]:.3f}"
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
        validation_accuracy=tuple(_number(row.get("validation_accuracy")) for _, row in found),
        validation_nll=tuple(_number(row.get("validation_nll")) for _, row in found),
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
    for name in ("accuracy", "nll", "validation_accuracy", "validation_nll"):
        values = getattr(line, name)
        fields[f"{name}_mean"] = mean(values)
        fields[f"{name}_standard_error"] = standard_error(values)
    return files.nan_as_none(fields)


def about(
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any] | None],
    command: str,
) -> list[str]:
    """Notes below the table: commits, the command, and the cells that are missing."""
    commits = sorted({r["commit"] or "unknown" for r in results if r is not None})
    notes = [f"Commit{'s' * (len(commits) > 1)} {', '.join(commits)}; made by: {command}"]
    missing = [str(c) for c, r in zip(cells, results, strict=True) if r is None]
    if missing:
        notes.append(f"Not done, {len(missing)} of {len(cells)}: {', '.join(missing)}")
    return notes
