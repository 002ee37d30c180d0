"""Stages: the rows of the curriculum, read from a config.

A stage is a row `stage_N` of the config: what it minimises, how long its thoughts are, where it
starts. `--stage=2` looks a row up; `--stage=all` runs them in order. Controls are rows like any other.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from fqs_jax import flops, settings, thoughts
from fqs_jax.data import corpus
from fqs_jax.errors import UserError
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives import distillation, plain, quiet_star

OPTIONAL = ("start", "teacher", "rows_of")  # numbers of other rows, or None
OBJECTIVES = ("next_token", "quiet_star", "ntp", "distill")
TAUGHT = ("ntp", "distill")  # those with a teacher
# The least value of whole numbers in a config.
LEAST = {
    "seed": 0,
    "batch_size": 1,
    "microbatches": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "checkpoint_minutes": 0,
    "keep_checkpoints": 1,
    "max_bad_steps": 1,
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row.

    Attributes:
      number: N of `stage_N`.
      name: for people and tables.
      objective: `next_token`, `quiet_star` (thinks), or `ntp` and `distill` (learn from a thinking
        stage to do without thoughts).
      start: number of the stage whose result it starts from; None = the initial model.
      teacher: for `ntp` and `distill`, number of the thinking stage that scores the text.
      n_ahead, n_ahead_talk: length of a thought and of what is predicted after it (quiet_star).
      learning_rate: peak, after warm-up.
      steps: optimiser steps.
      same_steps_as, same_flops_as: controls run as long as these stages together (instead of `steps`),
        counted in steps (= tokens of text) or in FLOPs, of which asking a teacher is a part.
      control: whether the row is a control, not part of the curriculum.
      rows_of: number of a stage whose training rows it reads, in the same order; None = its own. Students
        of one teacher on the same rows share what it says of them.
      settings: "field=value" in place of the config's, of fields of quiet_star, ntp, distill, and of
        data.text, and the shares of documents of the built-in task, such as data.clock.direct.
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
        """The number that tells its training rows from those of others."""
        return self.number if self.rows_of is None else self.rows_of

    @property
    def thinks(self) -> bool:
        return self.objective == "quiet_star"

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


def read_stages(
    config: ml_collections.ConfigDict, model: ModelConfig, max_steps: int | None = None
) -> list[Stage]:
    """All rows in order of their number, controls' steps worked out.

    Args:
      max_steps: no stage takes more steps than this.

    Raises:
      UserError: a row is inconsistent, or a setting out of range.
    """
    for name, least in LEAST.items():
        if config[name] < least:
            raise UserError(f"{name} is {config[name]}; set at least {least}")
    stages: dict[int, Stage] = {}
    for stage in rows(config):
        _check(stage, stages, config, model)
        steps = _steps(stage, stages, config, model)
        stage = dataclasses.replace(stage, steps=min(steps, max_steps or steps))
        if stage.objective == "distill":
            num_rows = stage.steps * config.batch_size
            distillation.check_size(teacher_arrays(config, stage, model), num_rows, str(stage))
        stages[stage.number] = stage
    return list(stages.values())


def rows(config: ml_collections.ConfigDict) -> list[Stage]:
    """The rows as they stand, in order of their number: unchecked, controls' steps not worked out.

    Raises:
      UserError: there is none.
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
    """The stage of a number or a name.

    Raises:
      UserError: there is none; names those there are.
    """
    for stage in stages:
        if which in (str(stage.number), stage.name):
            return stage
    known = ", ".join(f"{stage.number} ({stage.name})" for stage in stages)
    raise UserError(f"there is no stage {which!r}; there are {known}")


def select(stages: list[Stage], which: str) -> list[Stage]:
    """Stages of a comma-separated list of numbers or names, or `all`; in the order of the config.

    Raises:
      UserError: one of them does not exist.
    """
    if which == "all":
        return stages
    wanted = [find(stages, part.strip()) for part in which.split(",")]
    return [stage for stage in stages if stage in wanted]


Loss = Callable[..., tuple[Any, batch_lib.Metrics]]


def loss_function(
    config: ml_collections.ConfigDict,
    stage: Stage,
    model: ModelConfig,
    split_rationales: bool = False,
) -> Loss:
    """The stage's objective as (params, batch, key) -> (loss, metrics).

    Args:
      split_rationales: see `thoughts.sample_and_score`.
    """
    if stage.objective == "quiet_star":
        return functools.partial(
            quiet_star.quiet_star_loss,
            model=model,
            thought=settings.thought_config(config, stage),
            config=settings.quiet_star_config(config, stage),
            split_rationales=split_rationales,
        )
    if stage.objective == "ntp":
        return functools.partial(
            plain.ntp_loss, model=model, config=settings.ntp_config(config, stage)
        )
    if stage.objective == "distill":
        return functools.partial(
            distillation.distill_loss, model=model, config=settings.distill_config(config, stage)
        )
    return functools.partial(plain.next_token_loss, model=model)


def teacher_arrays(
    config: ml_collections.ConfigDict, stage: Stage, model: ModelConfig
) -> distillation.Arrays:
    """What a stage's batches have from its teacher: shapes of one row, and types. Empty without one."""
    length = config.data.seq_len
    if stage.objective == "ntp":
        return {"teacher_log_prob": ((length - 1,), np.float32)}
    if stage.objective == "distill":
        return distillation.teacher_arrays(
            settings.distill_config(config, stage), length, model.vocab_size
        )
    return {}


def abstract_params(config: ml_collections.ConfigDict, stage: Stage, model: ModelConfig) -> Params:
    """Shapes and types of a stage's parameters: {lm, and thought if it thinks}."""

    def make() -> Params:
        key = jax.random.key(0)
        params: Params = {"lm": decoder.init(model, key)}
        if stage.thinks:
            thought = settings.thought_config(config, stage)
            params["thought"] = thoughts.init(model, thought, params["lm"], key, 0, 0)
        return params

    return jax.eval_shape(make)


def step_flops(config: ml_collections.ConfigDict, stage: Stage, model: ModelConfig) -> int:
    """Model FLOPs of one training step of the stage (flops.py)."""
    batch, length = config.batch_size, config.data.seq_len
    if stage.thinks:
        weights = settings.quiet_star_config(config, stage)
        return flops.quiet_star_step(
            model,
            settings.thought_config(config, stage),
            batch,
            length,
            weights.num_positions(length),
            choosing=weights.position_fraction < 1 and weights.positions == "high_entropy",
            alone=weights.reads_alone,
        )
    if stage.objective == "ntp":
        sampled = settings.ntp_config(config, stage).action == "sampled"
        return flops.ntp_step(model, batch, length, sampled)
    return flops.next_token_step(model, batch, length)


def asking_flops(
    config: ml_collections.ConfigDict,
    stage: Stage,
    teacher_config: ml_collections.ConfigDict,
    teacher: Stage | None,
    model: ModelConfig,
) -> int:
    """Model FLOPs of asking the stage's teacher about the rows of one step; 0 for a stage without one.

    Args:
      teacher_config: that the teacher was trained with.
    """
    if stage.objective not in TAUGHT:
        return 0
    assert teacher is not None  # checked when the rows were read
    thought = settings.teacher_thought(config, stage, teacher_config, teacher)
    return flops.asking(model, thought, config.batch_size, config.data.seq_len)


def _check(
    stage: Stage, earlier: dict[int, Stage], config: ml_collections.ConfigDict, model: ModelConfig
) -> None:
    where = f"stage_{stage.number}"
    if stage.objective not in OBJECTIVES:
        raise UserError(
            f"{where}.objective is {stage.objective!r}; choose from {', '.join(OBJECTIVES)}"
        )
    if stage.thinks and (stage.n_ahead < 4 or stage.n_ahead_talk < 1):
        raise UserError(
            f"{where}: n_ahead must be at least 4 (one sampled token) and n_ahead_talk 1"
        )
    named = [n for n in (stage.start, stage.teacher, stage.rows_of) if n is not None]
    for number in (*named, *stage.same_steps_as, *stage.same_flops_as):
        if number not in earlier:
            raise UserError(f"{where} refers to stage {number}, which is not a row before it")
    if stage.objective in TAUGHT and (stage.teacher is None or not earlier[stage.teacher].thinks):
        raise UserError(f"{where}.teacher must be the number of a thinking stage before it")
    if stage.teacher is not None and stage.objective not in TAUGHT:
        raise UserError(f"{where} has a teacher; only {' and '.join(TAUGHT)} are taught")
    _check_rows(stage, earlier, config)
    if stage.thinks and config.data.seq_len < stage.n_ahead_talk + 2:
        raise UserError(
            f"data.seq_len is {config.data.seq_len}; {where} needs at least n_ahead_talk + 2 = "
            f"{stage.n_ahead_talk + 2}, or no position has a reward"
        )
    policy_weight = settings.quiet_star_config(config, stage).policy_weight
    if stage.thinks and config.thought.tokens != "sampled" and policy_weight:
        raise UserError(
            f"thoughts of {config.thought.tokens} tokens are not the model's to improve: "
            "set quiet_star.policy_weight to 0"
        )
    if not all(0 <= i < model.vocab_size for i in config.thought.masked_ids):
        raise UserError(
            f"thought.masked_ids go from 0 to {model.vocab_size - 1}, the vocabulary's last"
        )
    loss_function(config, stage, model)  # refuses bad settings now and not hours later


def _check_rows(stage: Stage, earlier: dict[int, Stage], config: ml_collections.ConfigDict) -> None:
    """What the stage reads."""
    where = f"stage_{stage.number}"
    data = settings.data_config(config, stage)
    try:
        corpus.built_in_task(data, config.seed)
    except UserError as error:
        raise UserError(f"{where}.settings: {error}" if stage.settings else str(error)) from error
    if stage.rows_of is None:
        return
    other = earlier[stage.rows_of]
    if other.rows_of is not None or settings.data_config(config, other) != data:
        raise UserError(
            f"{where}.rows_of is {other.number}, which reads other rows than this stage's settings "
            "say; name a stage with rows of its own and the same data settings"
        )
    if None not in (stage.teacher, other.teacher) and stage.teacher != other.teacher:
        raise UserError(f"{where} has another teacher than {other}, whose rows_of it reads")


def _steps(
    stage: Stage, earlier: dict[int, Stage], config: ml_collections.ConfigDict, model: ModelConfig
) -> int:
    def asking(stage: Stage) -> int:
        teacher = None if stage.teacher is None else earlier[stage.teacher]
        return asking_flops(config, stage, config, teacher, model)

    if stage.same_steps_as:
        return sum(earlier[n].steps for n in stage.same_steps_as)
    if stage.same_flops_as:
        budget = sum(
            earlier[n].steps * (step_flops(config, earlier[n], model) + asking(earlier[n]))
            for n in stage.same_flops_as
        )
        return max(1, round(budget / step_flops(config, stage, model)))
    if stage.steps < 1:
        raise UserError(f"stage_{stage.number}.steps is {stage.steps}; set at least 1")
    return stage.steps
