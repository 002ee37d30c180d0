"""The cells of a sweep, read from its config: variants x seeds, each one command of `fqs_jax.launch`.

Nothing in this file runs or writes anything.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.runs import source
from fqs_jax.runtime import cli, config_flag, seeds
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps.variants import Variant

REQUIRED = ("config", "seeds", "variants")
OPTIONAL: dict[str, Any] = {"overrides": (), "show_once": ()}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One variant with one seed.

    Attributes:
      number: index among all cells, from 0.
      variant: name of the variant.
      seed: seed of the experiment.
      folder: working directory for `fqs_jax.launch`.
      config: file of the experiment.
      overrides: "field=value" of the experiment's config, the seed first.
      stages: value of launch's --stage.
      stage_numbers: numbers of these stages.
    """

    number: int
    variant: str
    seed: int
    folder: Path
    config: str
    overrides: tuple[str, ...]
    stages: str
    stage_numbers: tuple[int, ...]

    @property
    def flags(self) -> list[str]:
        """Flags of `fqs_jax.launch` that the result depends on: all but the working directory."""
        changes = [f"--config.{override}" for override in self.overrides]
        return [f"--config={self.config}", *changes, f"--stage={self.stages}"]

    @property
    def arguments(self) -> list[str]:
        """Arguments of `python` that train the cell."""
        return ["-m", "fqs_jax.launch", *self.flags, f"--workdir={self.folder}"]

    @property
    def command(self) -> str:
        """The cell as a command line for a shell."""
        return " ".join(["python", *map(cli.quote, self.arguments)])

    def __str__(self) -> str:
        return f"cell {self.number} ({self.variant}, seed {self.seed})"


def read(config: ml_collections.ConfigDict, root: Path) -> list[Cell]:
    """All cells of a sweep, variant by variant, with everything checked.

    Args:
      root: the sweep's working directory.

    Raises:
      UserError: a field is unknown or missing; a name is used twice or cannot name a folder; the
        experiment lacks a field that is overridden; a stage does not exist, or a stage that it is made
        from is left out.
    """
    sweep = _fields(config)
    cells: list[Cell] = []
    for name, own, stages in map(_variant, sweep["variants"]):
        try:
            common = (*sweep["overrides"], *own)
            experiment = experiment_config(sweep["config"], common)
            rows = _stages(experiment)
            todo = stage_lib.select(rows, stages)
            _check_complete(todo)
            if missing := set(sweep["show_once"]) - {stage.number for stage in rows}:
                raise UserError(f"stage {min(missing)}, named in show_once, does not exist")
        except UserError as error:
            raise UserError(f"variant {name}: {error}") from error
        for seed in sweep["seeds"]:
            cells.append(
                Cell(
                    number=len(cells),
                    variant=name,
                    seed=seed,
                    folder=root / "cells" / name / f"seed_{seed}",
                    config=sweep["config"],
                    overrides=(f"seed={seed}", *common),
                    stages=stages,
                    stage_numbers=tuple(stage.number for stage in todo),
                )
            )
    _check_unique([cell.variant for cell in cells if cell.seed == sweep["seeds"][0]])
    return cells


def experiment_config(path: str, overrides: tuple[str, ...]) -> ml_collections.ConfigDict:
    """An experiment's config with overrides, read as `launch` reads its command line.

    Args:
      path: file of the experiment.
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
    line = ["sweep", f"--config={path}", *(f"--config.{override}" for override in overrides)]
    try:
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


def _fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    known = (*REQUIRED, *OPTIONAL)
    for key in config:
        if key not in known:
            raise UserError(f"the sweep has an unknown field {key!r}; it may have {_list(known)}")
    for key in REQUIRED:
        if key not in config:
            raise UserError(f"the sweep has no field {key!r}; it needs {_list(REQUIRED)}")
    sweep = OPTIONAL | {key: config[key] for key in config}
    for key in known[1:]:
        if not isinstance(sweep[key], tuple | list):
            raise UserError(f"the sweep's {key} is {sweep[key]!r}; give a tuple, as in (0, 1)")
    for key in ("seeds", "variants"):
        if not sweep[key]:
            raise UserError(f"the sweep's {key} are empty; give at least one")
    for seed in sweep["seeds"]:
        if not isinstance(seed, int) or not 0 <= seed <= seeds.MAX_SEED:
            raise UserError(
                f"the sweep's seed {seed!r} is no whole number from 0 to {seeds.MAX_SEED}"
            )
    if twice := _twice(sweep["seeds"]):
        raise UserError(f"the sweep's seed {twice[0]} is listed twice")
    return sweep


def _variant(given: Any) -> Variant:
    try:
        name, overrides, stages = given
        valid = all(isinstance(text, str) for text in (name, *overrides, stages))
    except (TypeError, ValueError):
        valid = False
    if not valid or isinstance(overrides, str):
        raise UserError(
            f"a variant of the sweep is {given!r}; make it with "
            'variant("name", "field=value", stages="0,1") of fqs_jax.sweeps'
        )
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise UserError(
            f"variant {name!r} cannot name a folder; use letters, digits and any of _ . + -"
        )
    return name, tuple(overrides), stages


def _stages(experiment: ml_collections.ConfigDict) -> list[Stage]:
    """All stages of an experiment, checked as `launch` checks them before it trains."""
    task = corpus.built_in_task(experiment.data, experiment.seed)
    if task is None:
        raise UserError("data.source is 'text'; a sweep compares answers to built-in problems")
    if experiment.get("init_from") or experiment.get("requires_init_from"):
        raise UserError("the experiment starts from a checkpoint; a sweep trains from scratch")
    model = source.described_model(experiment, vocab_size=corpus.vocab_size(task))
    return [recipe.stage for recipe in resolve.recipes(experiment, model)]


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


def _check_unique(names: list[str]) -> None:
    folded = [name.lower() for name in names]  # some file systems do not tell a from A
    if twice := _twice(folded):
        raise UserError(f"two variants of the sweep are named {twice[0]!r}; rename one")


def _twice(values: Any) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _list(names: Any) -> str:
    return ", ".join(names)
