"""The cells of a sweep, read from its config: variants x seeds, each one command of `fqs_jax.launch`.

Nothing in this file runs or writes anything.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_collections
from absl import flags

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.model.config import ModelConfig
from fqs_jax.runs import source
from fqs_jax.runtime import cli, config_flag, local_copies, paths
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import brackets, fields
from fqs_jax.sweeps.fields import Benchmark, Variant
from fqs_jax.sweeps.variants import Setting

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One variant with one seed and, if it has a bracket, one setting of that.

    Attributes:
      number: index among all cells, from 0.
      variant: name of the variant.
      seed: seed of the experiment.
      folder: working directory for `fqs_jax.launch`.
      config: file of the experiment.
      overrides: "field=value" of the experiment's config, the seed first.
      stages: value of launch's --stage.
      stage_numbers: numbers of these stages.
      setting: one of the variant's bracket, the last of the overrides; () = it has none.
      judged: number of the stage by which the bracket's settings are compared; None without a bracket.
      benchmarks: that its models are measured on; () = on the problems of a built-in task.
      held_out: text that their loss is measured on; "" = none.
      root: the sweep's working directory.
    """

    number: int
    variant: str
    seed: int
    folder: Path
    config: str
    overrides: tuple[str, ...]
    stages: str
    stage_numbers: tuple[int, ...]
    setting: Setting = ()
    judged: int | None = None
    benchmarks: tuple[Benchmark, ...] = ()
    held_out: str = ""
    root: Path = Path()

    @property
    def flags(self) -> list[str]:
        """Flags of `fqs_jax.launch` that the result depends on: all but the working directory."""
        changes = [f"--config.{override}" for override in self.overrides]
        return [f"--config={self.config}", *changes, f"--stage={self.stages}"]

    @property
    def measured_on(self) -> dict[str, Any]:
        """Everything else that the result depends on: benchmarks and text; {} for a built-in task."""
        if not self.benchmarks and not self.held_out:
            return {}
        shown = list(map(dataclasses.asdict, self.benchmarks))
        for benchmark in shown:
            del benchmark["batch_size"]  # changes nothing but memory and time
        return {"benchmarks": shown, "held_out": self.held_out}

    @property
    def arguments(self) -> list[str]:
        """Arguments of `python` that train the cell."""
        return ["-m", "fqs_jax.launch", *self.flags, f"--workdir={self.folder}"]

    @property
    def command(self) -> str:
        """The cell as a command line for a shell."""
        return " ".join(["python", *map(cli.quote, self.arguments)])

    def __str__(self) -> str:
        setting = f"{brackets.text(self.setting)}, " if self.setting else ""
        return f"cell {self.number} ({self.variant}, {setting}seed {self.seed})"


def by_variant(cells: Sequence[Cell], values: Sequence[T]) -> dict[str, list[tuple[Cell, T]]]:
    """The cells of each variant with their values, in the order of the sweep.

    Args:
      values: one for each cell.
    """
    found: dict[str, list[tuple[Cell, T]]] = {}
    for cell, value in zip(cells, values, strict=True):
        found.setdefault(cell.variant, []).append((cell, value))
    return found


def read(config: ml_collections.ConfigDict, root: Path) -> list[Cell]:
    """All cells of a sweep's config; see `of`."""
    return of(fields.read(config), root)


def of(sweep: fields.Sweep, root: Path) -> list[Cell]:
    """All cells of a sweep, variant by variant, with their experiments checked.

    Args:
      root: the sweep's working directory.

    Raises:
      UserError: the experiment lacks a field that is overridden; a stage does not exist, or a stage that
        it is made from is left out; a bracket would choose for several stages; a checkpoint, text or
        benchmarks are missing.
    """
    start = [f"init_from={sweep.init_from}"] * bool(sweep.init_from)
    if sweep.text:
        start += ["data.source=text", f"data.text={sweep.text}"]
    cells: list[Cell] = []
    for variant in sweep.variants:
        folder = root / "cells" / variant.name
        for setting in variant.bracket or ((),):
            common = (*start, *sweep.overrides, *variant.overrides, *setting)
            try:
                todo, judged = _todo(sweep, variant, common)
            except UserError as error:
                raise UserError(f"variant {variant.name}: {error}") from error
            place = folder / brackets.folder(setting) if setting else folder
            cells += [
                Cell(
                    number=len(cells) + n,
                    variant=variant.name,
                    seed=seed,
                    folder=place / f"seed_{seed}",
                    config=sweep.config,
                    overrides=(f"seed={seed}", *common),
                    stages=variant.stages,
                    stage_numbers=tuple(stage.number for stage in todo),
                    setting=setting,
                    judged=judged,
                    benchmarks=sweep.benchmarks,
                    held_out=sweep.held_out,
                    root=root,
                )
                for n, seed in enumerate(sweep.seeds)
            ]
    return cells


def _todo(
    sweep: fields.Sweep, variant: Variant, overrides: tuple[str, ...]
) -> tuple[list[Stage], int | None]:
    """The stages that a cell trains, and the one that a bracket is judged by."""
    rows = _stages(experiment_config(sweep.config, overrides), sweep.is_of_checkpoint)
    todo = stage_lib.select(rows, variant.stages)
    _check_complete(todo)
    if missing := set(sweep.show_once) - {stage.number for stage in rows}:
        raise UserError(f"stage {min(missing)}, named in show_once, does not exist")
    if variant.bracket and sweep.is_of_checkpoint and not sweep.validation_items:
        raise UserError(
            "its bracket needs benchmark items to choose by, which are not reported: set the sweep's "
            "validation_items"
        )
    return todo, _judged(todo) if variant.bracket else None


def _judged(todo: Sequence[Stage]) -> int:
    """The number of the stage that all others of a variant lead to."""
    used = {number for stage in todo for number in (stage.start, stage.teacher)}
    last = [stage for stage in todo if stage.number not in used]
    if len(last) > 1:
        raise UserError(
            f"its bracket would choose for {' and '.join(map(str, last))} at once; give each a variant "
            "of its own, with the stages that it is made from"
        )
    return last[0].number


def experiment_config(path: str, overrides: tuple[str, ...]) -> ml_collections.ConfigDict:
    """An experiment's config with overrides, read as `launch` reads its command line.

    Args:
      path: file of the experiment, or the name of a shipped one.
      overrides: "field=value" of its config.

    Raises:
      UserError: the file cannot be read, it lacks a field, or a value has the wrong type.
    """
    for override in overrides:
        if not re.fullmatch(r"[\w.]+=.*", override, re.DOTALL):
            raise UserError(f"override {override!r} is not of the form field=value")
        if override.split("=")[0] == "seed":
            raise UserError(
                f"override {override!r}: seeds are set by the sweep's own field c.seeds"
            )
    values = flags.FlagValues()
    try:
        file = config_flag.locate(path)
        line = ["sweep", f"--config={file}", *(f"--config.{override}" for override in overrides)]
        holder = config_flag.define(None, "Experiment.", values, line)
        values(line)
        config_flag.check(values)
        return holder.value
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise UserError(config_flag.problem(error)) from error


def _stages(experiment: ml_collections.ConfigDict, is_of_checkpoint: bool) -> list[Stage]:
    """All stages of an experiment, checked as `launch` checks them before it trains.

    Args:
      is_of_checkpoint: the sweep has benchmarks or held-out text.
    """
    return [
        recipe.stage for recipe in resolve.recipes(experiment, _model(experiment, is_of_checkpoint))
    ]


def _model(experiment: ml_collections.ConfigDict, is_of_checkpoint: bool) -> ModelConfig:
    """The architecture of an experiment: described for a built-in task, or that of a checkpoint."""
    task = corpus.built_in_task(experiment.data, experiment.seed)
    if task is not None and is_of_checkpoint:
        raise UserError(
            f"data.source is {experiment.data.source!r}, whose own problems compare models; leave "
            "benchmarks and held_out out, or give the sweep --config.text=FILE"
        )
    has_checkpoint = experiment.get("init_from") or experiment.get("requires_init_from")
    if task is not None and not has_checkpoint:
        return source.described_model(experiment, vocab_size=corpus.vocab_size(task))
    config_flag.expand_paths(experiment)
    if not experiment.get("init_from"):
        why = "the experiment" if task is not None else "data.source is 'text', so the experiment"
        raise UserError(f"{why} needs a checkpoint: give the sweep --config.init_from=HF_DIR")
    if task is None and not experiment.data.text:
        raise UserError("there is no text to train on: give the sweep --config.text=FILE")
    if task is None and not is_of_checkpoint:
        raise UserError(
            "data.source is 'text', which has no problems to compare models by: give the sweep "
            "benchmarks or held_out text"
        )
    folder = local_copies.of(paths.expand(experiment.init_from))
    return source.read_model(folder, experiment)


def _check_complete(todo: list[Stage]) -> None:
    """Check that no stage is left out that another one is made from."""
    numbers = {stage.number for stage in todo}
    for stage in todo:
        for needed in (stage.start, stage.teacher):
            if needed is not None and needed not in numbers:
                raise UserError(
                    f"{stage} is made from stage {needed}, which is not among its stages "
                    f"{', '.join(map(str, sorted(numbers)))}"
                )
