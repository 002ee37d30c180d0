"""Stages: the rows of the curriculum, read from a config as they stand.

A stage is a row `stage_N` of the config: its objective, the length of its thoughts, where it starts.
`--stage=2` runs one row, `--stage=..2` all rows up to it, `--stage=all` runs all in order. Controls are
rows like any other.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from fqs_jax.runtime.errors import UserError, printable

OPTIONAL = ("start", "teacher", "rows_of")  # numbers of other rows, or None
# The types of fields in words, for messages.
_WORDS = {
    "int": "a whole number",
    "int | None": "the number of a stage",
    "float": "a number",
    "str": "a text",
    "bool": "True or False",
    "tuple[int, ...]": "numbers of stages, such as (1, 2)",
    "tuple[str, ...]": 'texts, such as ("quiet_star.policy_weight=3",)',
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the curriculum.

    Attributes:
      number: N of `stage_N`.
      name: shown in tables and messages.
      objective: a name in the table of curriculum/objective.py: `next_token`, `quiet_star` (thinks), or
        `ntp` and `distill` (learn from a thinking stage to do without thoughts).
      start: number of the stage whose result it starts from; None = the initial model.
      teacher: number of the thinking stage that scores the text, for `ntp` and `distill`.
      n_ahead, n_ahead_talk: length of a thought, and of the text predicted after it (quiet_star).
      learning_rate: peak, after warm-up.
      steps: optimiser steps.
      same_steps_as, same_flops_as: stages that a control matches together instead of setting `steps`: in
        tokens, padding included, which are as many steps if rows are equally long, or in FLOPs, including
        those of a teacher's scores.
      control: the row is a control, not part of the curriculum.
      rows_of: number of a stage whose training rows it reads, in the same order; None = its own.
        Students of one teacher on the same rows share the teacher's scores.
      settings: overrides "field=value" of the config: fields of quiet_star, ntp, distill, lora,
        data.seq_len, data.text; or data.learn and the shares of documents of the built-in task, such
        as data.clock.direct.
    """

    number: int
    name: str
    objective: str
    start: int | None = None
    teacher: int | None = None
    n_ahead: int = 1
    n_ahead_talk: int = 1
    learning_rate: float = 1e-6
    steps: int = 0
    same_steps_as: tuple[int, ...] = ()
    same_flops_as: tuple[int, ...] = ()
    control: bool = False
    rows_of: int | None = None
    settings: tuple[str, ...] = ()

    @property
    def stream(self) -> int:
        """The number that identifies its training rows."""
        return self.number if self.rows_of is None else self.rows_of

    def __str__(self) -> str:
        return f"stage {self.number} ({self.name})"


def row(name: str, objective: str, **fields: Any) -> ml_collections.ConfigDict:
    """A config row with every field of `Stage`, so that overrides on the command line are checked."""
    known = {f.name: f.default for f in dataclasses.fields(Stage)[1:]}
    values = known | {"name": name, "objective": objective} | fields
    optional = {key: ml_collections.config_dict.placeholder(int) for key in OPTIONAL}
    config = ml_collections.ConfigDict(optional)
    with config.unlocked():
        config.update({key: value for key, value in values.items() if value is not None})
    return config


def rows(config: ml_collections.ConfigDict) -> list[Stage]:
    """The rows of a config in order of their number: unchecked, the steps of controls not worked out.

    Raises:
      UserError: the config has no row, or a field of one is unknown or of another type.
    """
    numbers = sorted(
        int(m[1]) for key in config if (m := re.fullmatch(r"stage_(0|[1-9][0-9]*)", key))
    )
    if not numbers:
        raise UserError("the config has no stage_N rows; see configs/common.py")
    stages = []
    for number in numbers:
        fields = config[f"stage_{number}"].to_dict()
        stages.append(from_fields({"number": number} | fields, f"stage_{number}"))
    return stages


def from_fields(fields: Mapping[str, Any], where: str) -> Stage:
    """A row from its fields as a config or JSON has them.

    Args:
      where: the place of the row, for the message.

    Raises:
      UserError: a field is unknown, missing or of another type.
    """
    known = {field.name: field for field in dataclasses.fields(Stage)}
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    for name, field in known.items():
        if name in values and not _fits(values[name], str(field.type)):
            shown = printable(repr(values[name]), 100)
            raise UserError(f"{where}.{name} is {shown}; it should be {_WORDS[str(field.type)]}")
        if name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{where} has no field {name!r}; see configs/common.py")
    for name in values.keys() - known.keys():
        raise UserError(
            f"{where} has a field {printable(name, 100)!r}, which is none of {', '.join(known)}"
        )
    return Stage(**values)


def _fits(value: Any, kind: str) -> bool:
    """True if a value has the type that a field of `Stage` is annotated with."""
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind.startswith("tuple"):
        inner = int if "int" in kind else str
        return isinstance(value, tuple) and all(type(item) is inner for item in value)
    if kind == "int | None" and value is None:
        return True
    return isinstance(value, {"str": str, "float": int | float}.get(kind, int))


def find(stages: list[Stage], which: str) -> Stage:
    """The stage with a number or a name.

    Raises:
      UserError: no stage has it; the message lists the existing ones.
    """
    for stage in stages:
        if which in (str(stage.number), stage.name):
            return stage
    known = ", ".join(f"{stage.number} ({stage.name})" for stage in stages)
    raise UserError(f"there is no stage {which!r}; there are {known or 'none yet'}")


def select(stages: list[Stage], which: str) -> list[Stage]:
    """The stages that a flag chooses, in the order of the config.

    Args:
      which: numbers or names with commas between them; `..N`, all up to the number or name N; or `all`.

    Raises:
      UserError: one of them does not exist.
    """
    if which == "all":
        return stages
    if which.startswith(".."):
        return stages[: stages.index(find(stages, which[2:].strip())) + 1]
    wanted = [find(stages, part.strip()) for part in which.split(",")]
    return [stage for stage in stages if stage in wanted]
