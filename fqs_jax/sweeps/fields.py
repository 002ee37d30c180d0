"""The fields of a sweep's config, checked by themselves, before the experiment is read."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_collections

from fqs_jax.evaluation import command_flags
from fqs_jax.runtime import paths, seeds
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import brackets
from fqs_jax.sweeps.variants import Setting

REQUIRED = ("config", "seeds", "variants")
TUPLES = ("seeds", "variants", "overrides", "show_once", "benchmarks")
TEXTS = ("config", "init_from", "text", "benchmark_folder", "held_out")
SCORINGS = ("letters", "text")
CHOOSE_BY = ("accuracy", "nll")


class Variant(NamedTuple):
    """A variant as `variants.variant` made it."""

    name: str
    overrides: tuple[str, ...]
    stages: str
    bracket: tuple[Setting, ...]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark as `variants.benchmark` made it, with the paths of its files."""

    task: str
    file: str
    name: str
    scoring: str
    labels_file: str
    limit: int | None
    seed: int
    thought_seeds: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The fields of a sweep; docs/sweeps.md explains each."""

    config: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    overrides: tuple[str, ...] = ()
    show_once: tuple[int, ...] = ()
    choose_by: str = "accuracy"
    init_from: str = ""
    text: str = ""
    benchmarks: tuple[Benchmark, ...] = ()
    benchmark_folder: str = ""
    validation_items: int = 0
    held_out: str = ""

    @property
    def is_of_checkpoint(self) -> bool:
        """True if models are compared by benchmarks or held-out text, and not by built-in problems."""
        return bool(self.benchmarks or self.held_out)


def read(config: ml_collections.ConfigDict) -> Sweep:
    """The fields of a sweep.

    Raises:
      UserError: one is unknown, missing or malformed, or something is named twice.
    """
    known = [field.name for field in dataclasses.fields(Sweep)]
    if "variants" not in config and any(key.startswith("stage_") for key in config):
        raise UserError("this config is an experiment, not a sweep: train it with fqs launch")
    for key in config:
        if key not in known:
            raise UserError(f"the sweep has an unknown field {key!r}; it may have {_list(known)}")
    for key in REQUIRED:
        if key not in config:
            raise UserError(f"the sweep has no field {key!r}; it needs {_list(REQUIRED)}")
    given = {key: config[key] for key in config}
    for key in [key for key in TUPLES if key in given]:
        if not isinstance(given[key], tuple | list):
            raise UserError(f"the sweep's {key} is {given[key]!r}; give a tuple, as in (0, 1)")
        given[key] = tuple(given[key])
    for override in given.get("overrides", ()):
        if not isinstance(override, str):
            raise UserError(f'the sweep\'s override {override!r} is no text "field=value"')
    for number in given.get("show_once", ()):
        if type(number) is not int:
            raise UserError(f"the sweep's show_once has {number!r}; give numbers of stages")
    for key in ("seeds", "variants"):
        if not given[key]:
            raise UserError(f"the sweep's {key} are empty; give at least one")
    for seed in given["seeds"]:
        if not isinstance(seed, int) or not 0 <= seed <= seeds.MAX_SEED:
            raise UserError(
                f"the sweep's seed {seed!r} is no whole number from 0 to {seeds.MAX_SEED}"
            )
    if twice := _twice(given["seeds"]):
        raise UserError(f"the sweep's seed {twice[0]} is listed twice")
    given["variants"] = tuple(map(_variant, given["variants"]))
    # Some file systems do not tell a from A.
    if twice := _twice(variant.name.lower() for variant in given["variants"]):
        raise UserError(f"two variants of the sweep are named {twice[0]!r}; rename one")
    for key in [key for key in TEXTS if key in given]:
        if not isinstance(given[key], str):
            raise UserError(f"the sweep's {key} is {given[key]!r}; give a text")
    if given.get("choose_by", "accuracy") not in CHOOSE_BY:
        raise UserError(
            f"the sweep's choose_by is {given['choose_by']!r}; choose from {_list(CHOOSE_BY)}"
        )
    folder = given.get("benchmark_folder", "")
    given["benchmarks"] = tuple(_benchmark(each, folder) for each in given.get("benchmarks", ()))
    names = [
        *(each.name for each in given["benchmarks"]),
        *(["held-out text"] * ("held_out" in given)),
    ]
    if twice := _twice(names):
        raise UserError(
            f"two benchmarks of the sweep are named {twice[0]!r}; give one another name="
        )
    items = given.get("validation_items", 0)
    if type(items) is not int or items < 0 or (items and not given["benchmarks"]):
        raise UserError(
            f"the sweep's validation_items are {items!r}; give a number of items of its benchmarks"
        )
    return Sweep(**given)


def _benchmark(given: Any, folder: str) -> Benchmark:
    try:
        benchmark = Benchmark(*given)
        valid = all(isinstance(text, str) for text in given[:5])
        valid = valid and all(type(number) is int for number in given[6:])
    except TypeError:
        valid = False
    if not valid:
        raise UserError(
            f"a benchmark of the sweep is {given!r}; make it with "
            'benchmark("csqa", "FILE", limit=500) of fqs_jax.sweeps'
        )
    task, name = benchmark.task, benchmark.name
    if task not in command_flags.NAMES:
        raise UserError(
            f"benchmark {name}: there is no task {task!r}; choose from {_list(command_flags.NAMES)}"
        )
    if benchmark.scoring not in SCORINGS:
        raise UserError(
            f"benchmark {name}: scoring is {benchmark.scoring!r}; choose from {_list(SCORINGS)}"
        )
    if benchmark.scoring == "text" and task == "gsm8k":
        raise UserError(
            f"benchmark {name}: scoring is 'text', but gsm8k has no options; leave it out"
        )
    limit = 1 if benchmark.limit is None else benchmark.limit
    numbers = (limit, benchmark.thought_seeds, benchmark.batch_size)
    if any(type(number) is not int or number < 1 for number in numbers):
        raise UserError(
            f"benchmark {name}: limit, thought_seeds and batch_size must be whole numbers of at least 1"
        )
    if not 0 <= benchmark.seed <= seeds.MAX_SEED:
        raise UserError(f"benchmark {name}: seed is {benchmark.seed}; set 0 to {seeds.MAX_SEED}")
    if not benchmark.file:
        raise UserError(f"benchmark {name} has no file; give one")
    file, labels_file = (_placed(each, folder) for each in (benchmark.file, benchmark.labels_file))
    return dataclasses.replace(benchmark, file=file, labels_file=labels_file)


def _placed(file: str, folder: str) -> str:
    """A file in the folder of benchmarks, unless it is a dataset or has a full path."""
    if not folder or not file or re.match(r"(tfds|hub):|gs://|~", file):
        return file
    return str(paths.expand(folder) / file)


def _variant(given: Any) -> Variant:
    try:
        name, overrides, stages, bracket = given
        texts = (name, *overrides, stages, *(value for setting in bracket for value in setting))
        valid = all(isinstance(text, str) for text in texts)
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
    variant = Variant(name, tuple(overrides), stages, tuple(map(tuple, bracket)))
    try:
        brackets.check(variant.bracket, variant.overrides)
    except UserError as error:
        raise UserError(f"variant {name}: {error}") from error
    return variant


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
