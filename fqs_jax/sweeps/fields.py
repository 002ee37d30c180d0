"""The fields of a sweep's config, checked by themselves, before the experiment is read."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_collections

from fqs_jax.runtime import seeds
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import brackets
from fqs_jax.sweeps.variants import Setting

REQUIRED = ("config", "seeds", "variants")


class Variant(NamedTuple):
    """A variant as `variants.variant` made it."""

    name: str
    overrides: tuple[str, ...]
    stages: str
    bracket: tuple[Setting, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The fields of a sweep; docs/sweeps.md explains each."""

    config: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    overrides: tuple[str, ...] = ()
    show_once: tuple[int, ...] = ()


def read(config: ml_collections.ConfigDict) -> Sweep:
    """The fields of a sweep.

    Raises:
      UserError: one is unknown, missing or malformed, or something is named twice.
    """
    known = [field.name for field in dataclasses.fields(Sweep)]
    for key in config:
        if key not in known:
            raise UserError(f"the sweep has an unknown field {key!r}; it may have {_list(known)}")
    for key in REQUIRED:
        if key not in config:
            raise UserError(f"the sweep has no field {key!r}; it needs {_list(REQUIRED)}")
    given = {key: config[key] for key in config}
    for key in given.keys() & {"seeds", "variants", "overrides", "show_once"}:
        if not isinstance(given[key], tuple | list):
            raise UserError(f"the sweep's {key} is {given[key]!r}; give a tuple, as in (0, 1)")
        given[key] = tuple(given[key])
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
    return Sweep(**given)


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
