"""The lines of a sweep of checkpoints: a model on a benchmark, over seeds, and its gains over the base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from fqs_jax.evaluation import statistics
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import brackets, outcomes
from fqs_jax.sweeps.cells import Cell, by_variant
from fqs_jax.sweeps.choosing import Score
from fqs_jax.sweeps.outcomes import HELD_OUT, Model, Outcome
from fqs_jax.sweeps.results import mean, standard_error

BASE = Model("init", "base", "base")
TEMPERED_BASE = dataclasses.replace(BASE, tempered=True)
_FREE = {"tokens": 0, "flops": 0, "after_base_flops": 0}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: a model of a variant on a benchmark, over seeds.

    Attributes:
      variant, setting, is_at_edge: as in `results.Line`.
      planned: number of seeds in the sweep.
      seeds: seeds that are done.
      benchmark: its name; "" = no seed is done.
      model: None if no seed is done.
      items: number of items, or of documents, that are reported.
      values: of each measure, one value for each seed.
      validation: the same on the items that settings are chosen by; {} without such items.
      gains: of each measure, its mean over seeds less that of the base, with the 95% interval of a
        bootstrap over items; {} for the base itself.
      gains_over_tempered: the same over the base at the temperature that is best for the measure.
      tokens, flops: of all training from the checkpoint to this model, with its teachers.
    """

    variant: str
    planned: int
    setting: str = ""
    is_at_edge: bool = False
    seeds: tuple[int, ...] = ()
    benchmark: str = ""
    model: Model | None = None
    items: int = 0
    values: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    validation: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    gains: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    gains_over_tempered: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    tokens: int = 0
    flops: int = 0

    @property
    def name(self) -> str:
        """The model's name."""
        if self.model is None:
            return "not done yet"
        if self.model.tempered:
            return f"{self.model.name} at its best temperature"
        thinks_elsewhere = self.model.kind == "thinking" and self.model.thoughts == "none"
        return f"{self.model.name} without thoughts" if thinks_elsewhere else self.model.name


def read(result: dict[str, Any]) -> list[Outcome]:
    """The outcomes in a cell's result."""
    return list(map(outcomes.from_json, result["outcomes"]))


def score(cell: Cell, result: dict[str, Any] | None, validation_items: int) -> Score | None:
    """The validation score by which the setting of a bracket's cell is judged; None = not done.

    It is the mean over benchmarks, with thoughts if the judged stage thinks.
    """
    if result is None or cell.judged is None:
        return None
    own = [found for found in read(result) if found.model.stage == str(cell.judged)]
    own = [found for found in own if found.benchmark != HELD_OUT]
    if any(found.model.thoughts != "none" for found in own):
        own = [found for found in own if found.model.thoughts != "none"]
    chosen = [found.items_N < validation_items for found in own]
    if not own or not all(chosen_N.any() for chosen_N in chosen):
        return Score(math.nan, math.nan)
    means = [
        [found.mean(measure, chosen_N) for measure in ("accuracy", "nll")]
        for found, chosen_N in zip(own, chosen, strict=True)
    ]
    return Score(*map(float, np.mean(means, axis=0)))


def unlike(
    cells: Sequence[Cell], results: Sequence[dict[str, Any] | None], show_once: Sequence[int]
) -> list[str]:
    """A sentence for each hidden line of a variant and seed that differs from the line that is shown."""
    once = set(map(str, show_once))
    shown: dict[tuple[Model, str, int], tuple[str, float]] = {}
    sentences: list[str] = []
    for cell, result in zip(cells, results, strict=True):
        for found in read(result) if result is not None else ():
            if found.model.stage not in once:
                continue
            nll = found.mean("nll")
            key = found.model, found.benchmark, cell.seed
            variant, other = shown.setdefault(key, (cell.variant, nll))
            if nll != other:
                sentences.append(
                    f"{found.model.name} of {cell.variant} on {found.benchmark}, seed {cell.seed}, differs "
                    f"from that of {variant}: NLL {nll:.3f} and {other:.3f}"
                )
    return sentences


def lines(
    cells: Sequence[Cell],
    results: Sequence[dict[str, Any] | None],
    validation_items: int,
    show_once: Sequence[int] = (),
    edges: Container[str] = (),
) -> list[Line]:
    """The table: a line for each variant, model and benchmark, in the order of the sweep.

    Args:
      cells: of each variant, those of one setting.
      results: one for each cell; None = not done.
      validation_items: the first so many items of each benchmark are not reported.
      show_once: stages that are shown only for the first variant that has them. A base is shown once
        for all variants that start from it.
      edges: variants whose chosen setting is at the edge of its bracket.

    Raises:
      UserError: a benchmark has no other items, or cells measured different ones.
    """
    table: list[Line] = []
    shown: set[str] = set()
    bases: list[Any] = []
    for variant, mine in by_variant(cells, results).items():
        hidden = shown & {str(number) for number in show_once}
        done = [(cell.seed, result, read(result)) for cell, result in mine if result is not None]
        shared = Line(
            variant, len(mine), brackets.text(mine[0][0].setting), variant in edges and bool(done)
        )
        if not done:
            table.append(dataclasses.replace(shared, setting=""))
            continue
        keys = dict.fromkeys((f.benchmark, f.model) for *_, every in done for f in every)
        for benchmark, model in keys:
            line = _line(shared, benchmark, model, done, validation_items)
            if model.stage == "init":
                # The base of every seed is the same model.
                about = (model, benchmark, {name: set(v) for name, v in line.values.items()})
                if about in bases:
                    continue
                bases.append(about)
            if model.stage not in hidden:
                shown.add(model.stage)
                table.append(line)
    return table


def _line(
    shared: Line,
    benchmark: str,
    model: Model,
    done: Sequence[tuple[int, dict[str, Any], list[Outcome]]],
    validation_items: int,
) -> Line:
    by_seed: list[dict[Model, Outcome]] = [
        {found.model: found for found in every if found.benchmark == benchmark}
        for *_, every in done
    ]
    if not all(model in own for own in by_seed):
        raise UserError(
            f"seeds of {shared.variant} have different models, and not all have {model.name}: the experiment "
            f"has changed; remove the older files {shared.variant}/**/result.json, and run again"
        )
    first = by_seed[0][model]
    for own in by_seed:
        if own[model].digest != first.digest or len(own[model].items_N) != len(first.items_N):
            raise UserError(
                f"seeds of {shared.variant} measured different items of {benchmark}: its file has "
                f"changed; remove the older files {shared.variant}/**/result.json, and run again"
            )
    is_text = benchmark == HELD_OUT
    reported_N = first.items_N >= (0 if is_text else validation_items)
    if not reported_N.any():
        raise UserError(
            f"benchmark {benchmark} has {len(first.items_N)} items, and none is left to report behind "
            f"validation_items={validation_items}; set fewer"
        )
    training = done[0][1]["training"].get(model.stage, _FREE)

    def means(chosen_N: np.ndarray) -> dict[str, tuple[float, ...]]:
        return {
            measure: tuple(own[model].mean(measure, chosen_N) for own in by_seed)
            for measure in first.measures
        }

    def gains(base: Model) -> dict[str, Interval]:
        is_base = model.stage == "init" and base in (model, TEMPERED_BASE)
        if is_base or base not in by_seed[0]:
            return {}
        return {
            measure: gain(
                [own[model].measures[measure][reported_N] for own in by_seed],
                [own[base].measures[measure][reported_N] for own in by_seed],
                first.weights_N[reported_N],
            )
            for measure in first.measures
        }

    return dataclasses.replace(
        shared,
        seeds=tuple(seed for seed, *_ in done),
        benchmark=benchmark,
        model=model,
        items=int(reported_N.sum()),
        values=means(reported_N),
        validation=means(~reported_N) if not reported_N.all() else {},
        gains=gains(BASE),
        gains_over_tempered=gains(TEMPERED_BASE),
        tokens=training["tokens"],
        flops=training["flops"],
    )


def gain(
    model_SxN: Sequence[np.ndarray], base_SxN: Sequence[np.ndarray], weights_N: np.ndarray
) -> Interval:
    """The mean of model - base, item by item, with the interval of a bootstrap over items.

    The differences of an item are averaged over S seeds first, so the interval holds for these seeds: it
    has the luck of the items, not that of the seeds.
    """
    change_N = np.mean(np.array(model_SxN) - np.array(base_SxN), axis=0)

    def weighted(numbers: np.ndarray, axis: int) -> np.ndarray:
        return (change_N * weights_N)[numbers].sum(axis=axis) / weights_N[numbers].sum(axis=axis)

    return statistics.bootstrap(weighted, np.arange(len(change_N)))


def as_json(line: Line) -> dict[str, Any]:
    """A line with its statistics, for JSON: None instead of NaN, which JSON lacks."""
    fields = dataclasses.asdict(line) | {"name": line.name}
    for part in ("values", "validation"):
        by_measure = getattr(line, part)
        fields[f"{part}_mean"] = {name: mean(values) for name, values in by_measure.items()}
        fields[f"{part}_standard_error"] = {
            name: standard_error(values) for name, values in by_measure.items()
        }
    for part in ("gains", "gains_over_tempered"):
        fields[part] = {name: each._asdict() for name, each in getattr(line, part).items()}
    return files.nan_as_none(fields)
