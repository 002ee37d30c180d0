"""Flags of paths and of finite numbers, for all programs."""

from __future__ import annotations

import math
from typing import Any

from absl import flags

from fqs_jax.runtime import paths

flags.disclaim_key_flags()  # a flag that is defined here belongs to the caller, for --help


def define_path(
    name: str, default: str | None, text: str, local: bool = False
) -> flags.FlagHolder[Any]:
    """Define the flag of a path: `~` is expanded, and the address of another machine is refused.

    Args:
      local: a place in a bucket (gs://) is refused too.
    """
    return flags.DEFINE(_LocalPathParser() if local else _PathParser(), name, default, text)


def define_number(
    name: str,
    default: float,
    text: str,
    lower_bound: float | None = None,
    upper_bound: float | None = None,
) -> flags.FlagHolder[Any]:
    """Define the flag of a finite number; the bounds themselves are allowed."""
    return flags.DEFINE(_NumberParser(lower_bound, upper_bound), name, default, text)


class _PathParser(flags.ArgumentParser[str]):
    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        if paths.is_bucket(argument):
            return str(paths.expand(argument))
        expanded = paths.expand(argument)
        return str(expanded) if argument.startswith("~") else argument


class _LocalPathParser(_PathParser):
    def parse(self, argument: str) -> str:
        expanded = paths.expand_local(argument)
        return str(expanded) if argument.startswith("~") else argument


class _NumberParser(flags.FloatParser):
    def convert(self, argument: float | str) -> float:
        number = super().convert(argument)
        if not math.isfinite(number):
            raise ValueError("the number must be finite")
        return number
