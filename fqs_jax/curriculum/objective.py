"""The objective of a stage: its loss, the arrays it needs from a teacher, its FLOPs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from fqs_jax.curriculum import settings as settings_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives import distillation, plain, quiet_star
from fqs_jax.thinking import flops, parameters

OBJECTIVES = ("next_token", "quiet_star", "ntp", "distill")


TAUGHT = ("ntp", "distill")  # those with a teacher


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
            thought=settings_lib.thought_config(config, stage),
            config=settings_lib.quiet_star_config(config, stage),
            split_rationales=split_rationales,
        )
    if stage.objective == "ntp":
        return functools.partial(
            plain.ntp_loss, model=model, config=settings_lib.ntp_config(config, stage)
        )
    if stage.objective == "distill":
        return functools.partial(
            distillation.distill_loss,
            model=model,
            config=settings_lib.distill_config(config, stage),
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
            settings_lib.distill_config(config, stage), length, model.vocab_size
        )
    return {}


def abstract_params(config: ml_collections.ConfigDict, stage: Stage, model: ModelConfig) -> Params:
    """Shapes and types of a stage's parameters: {lm, and thought if it thinks}."""

    def make() -> Params:
        key = jax.random.key(0)
        params: Params = {"lm": decoder.init(model, key)}
        if stage.thinks:
            thought = settings_lib.thought_config(config, stage)
            params["thought"] = parameters.init(model, thought, params["lm"], key, 0, 0)
        return params

    return jax.eval_shape(make)


def step_flops(config: ml_collections.ConfigDict, stage: Stage, model: ModelConfig) -> int:
    """Model FLOPs of one training step of the stage (thinking/flops.py)."""
    batch, length = config.batch_size, config.data.seq_len
    if stage.thinks:
        weights = settings_lib.quiet_star_config(config, stage)
        return flops.quiet_star_step(
            model,
            settings_lib.thought_config(config, stage),
            batch,
            length,
            weights.num_positions(length),
            choosing=weights.position_fraction < 1 and weights.positions == "high_entropy",
            alone=weights.reads_alone,
        )
    if stage.objective == "ntp":
        sampled = settings_lib.ntp_config(config, stage).action == "sampled"
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
    thought = settings_lib.teacher_thought(config, stage, teacher_config, teacher)
    return flops.asking(model, thought, config.batch_size, config.data.seq_len)
