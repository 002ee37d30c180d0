"""Stages: the rows of the curriculum, read from a config as they stand.

A stage is a row `stage_N` of the config: its objective, the length of its thoughts, where it starts.
`--stage=2` runs one row, `--stage=all` runs all in order. Controls are rows like any other.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import ml_collections

from fqs_jax.runtime.errors import UserError

OPTIONAL = ("start", "teacher", "rows_of")  # numbers of other rows, or None


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
        steps (the same tokens of text) or in FLOPs, including those of a teacher's scores.
      control: the row is a control, not part of the curriculum.
      rows_of: number of a stage whose training rows it reads, in the same order; None = its own.
        Students of one teacher on the same rows share the teacher's scores.
      settings: overrides "field=value" of the config: fields of quiet_star, ntp, distill, data.text, and
        the shares of documents of the built-in task, such as data.clock.direct.
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
      UserError: the config has no row.
    """
    numbers = sorted(int(m[1]) for key in config if (m := re.fullmatch(r"stage_(\d+)", key)))
    if not numbers:
        raise UserError("the config has no stage_N rows; see configs/common.py")
    stages = []
    for number in numbers:
        fields = config[f"stage_{number}"].to_dict()
        fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        stages.append(Stage(number=number, **fields))
    return stages


def find(stages: list[Stage], which: str) -> Stage:
    """The stage with a number or a name.

    Raises:
      UserError: no stage has it; the message lists the existing ones.
    """
    for stage in stages:
        if which in (str(stage.number), stage.name):
            return stage
    known = ", ".join(f"{stage.number} ({stage.name})" for stage in stages)
    raise UserError(f"there is no stage {which!r}; there are {known}")


def select(stages: list[Stage], which: str) -> list[Stage]:
    """The stages in a comma-separated list of numbers or names, or `all`; in the order of the config.

    Raises:
      UserError: one of them does not exist.
    """
    if which == "all":
        return stages
    wanted = [find(stages, part.strip()) for part in which.split(",")]
    return [stage for stage in stages if stage in wanted]
