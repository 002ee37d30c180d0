"""Stages: the rows of the curriculum, read from a config.

A stage is a row `stage_N` of the config: what it minimises, how long its thoughts are, where it
starts. `--stage=2` looks a row up; `--stage=all` runs them in order. Controls are rows like any other.
"""

from __future__ import annotations

import dataclasses

import ml_collections

from fqs_jax.curriculum import settings as settings_lib
from fqs_jax.curriculum.objective import (
    OBJECTIVES,
    TAUGHT,
    asking_flops,
    loss_function,
    step_flops,
    teacher_arrays,
)
from fqs_jax.curriculum.stage import Stage, rows
from fqs_jax.data import corpus
from fqs_jax.model.config import ModelConfig
from fqs_jax.objectives import distillation
from fqs_jax.runtime.errors import UserError

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
    policy_weight = settings_lib.quiet_star_config(config, stage).policy_weight
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
    data = settings_lib.data_config(config, stage)
    try:
        corpus.built_in_task(data, config.seed)
    except UserError as error:
        raise UserError(f"{where}.settings: {error}" if stage.settings else str(error)) from error
    if stage.rows_of is None:
        return
    other = earlier[stage.rows_of]
    if other.rows_of is not None or settings_lib.data_config(config, other) != data:
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
