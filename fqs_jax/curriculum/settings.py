"""What a row's stage is set to: sections of the config, with the row's own settings in their place."""

from __future__ import annotations

import ast
import re
from typing import Any

import ml_collections

from fqs_jax.curriculum.stage import Stage
from fqs_jax.objectives import distillation, plain
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig

# Of a built-in task: which documents are read, not which problems there are.
OF_TASKS = "worked|direct|chatter|unanswered|true_after_chatter|label_noise|lengths"
SECTIONS = ("data", "quiet_star", "ntp", "distill")  # that a row may have its own settings of


def thought_config(
    config: ml_collections.ConfigDict, stage: Stage, **changes: Any
) -> ThoughtConfig:
    """What a thought is in a thinking stage."""
    t = config.thought
    fields: dict[str, Any] = {
        "n_ahead": stage.n_ahead,
        "n_ahead_talk": stage.n_ahead_talk,
        "rationales": t.rationales,
        "mixing": t.mixing,
        "mixing_bias": t.mixing_bias,
        "embedding_scale": t.embedding_scale,
        "temperature": t.temperature,
        "reinforce_temperature": t.reinforce_temperature,
        "masked_ids": tuple(t.masked_ids),
        "tokens": t.tokens,
    }
    return ThoughtConfig(**fields | changes)


def quiet_star_config(config: ml_collections.ConfigDict, stage: Stage) -> QuietStarConfig:
    """How thoughts are trained."""
    where = {name: config.thought[name] for name in ("position_fraction", "positions")}
    return QuietStarConfig(**_sections(config, stage).quiet_star, **where)


def ntp_config(config: ml_collections.ConfigDict, stage: Stage) -> plain.NTPConfig:
    """How a plain model is fine-tuned as published."""
    return plain.NTPConfig(**_sections(config, stage).ntp)


def distill_config(config: ml_collections.ConfigDict, stage: Stage) -> distillation.DistillConfig:
    """How a plain model is taught."""
    return distillation.DistillConfig(**_sections(config, stage).distill)


def data_config(config: ml_collections.ConfigDict, stage: Stage) -> ml_collections.ConfigDict:
    """What a stage reads."""
    return _sections(config, stage).data


def teacher_thought(
    config: ml_collections.ConfigDict,
    stage: Stage,
    teacher_config: ml_collections.ConfigDict,
    teacher: Stage,
) -> ThoughtConfig:
    """How the teacher of a stage thinks when it is asked.

    Args:
      teacher_config: that the teacher was trained with.
    """
    distills = stage.objective == "distill"
    return thought_config(
        teacher_config,
        teacher,
        rationales=distill_config(config, stage).teacher_thoughts if distills else 1,
        n_ahead_talk=1,
        temperature=config.thought.eval_temperature,
    )


def _sections(config: ml_collections.ConfigDict, stage: Stage) -> ml_collections.ConfigDict:
    """The sections that a stage may have its own settings of, with them.

    Raises:
      UserError: a setting is of another field, or its value of another type.
    """
    # A record of a stage lacks the sections that are of no concern to it.
    present = [name for name in SECTIONS if name in config]
    sections = ml_collections.ConfigDict({name: config[name].to_dict() for name in present})
    known = files.flat(sections.to_dict())
    data = "text" if config.data.source == "text" else rf"{config.data.source}\.({OF_TASKS})"
    for setting in stage.settings:
        field, equals, text = setting.partition("=")
        section = field.split(".")[0]
        if section in SECTIONS and section not in present:
            continue
        try:
            if not equals or section == "data" and not re.fullmatch(rf"data\.({data})", field):
                raise KeyError(field)
            old = tuple(known[field]) if isinstance(known[field], list) else known[field]
            value = text if isinstance(old, str) else ast.literal_eval(text)
            if isinstance(old, float) and isinstance(value, int):
                value = float(value)
            if type(value) is not type(old):
                raise TypeError(value)
        except (KeyError, ValueError, SyntaxError, TypeError) as error:
            raise UserError(
                f"stage_{stage.number}.settings has {setting!r}; write field=value, as in Python, with "
                "a field of quiet_star, ntp, distill, with data.text, or the shares of documents of "
                "the built-in task that is read"
            ) from error
        sections.update_from_flattened_dict({field: value})
    return sections
