"""The settings of a stage: the experiment's config with the stage's own overrides applied."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from fqs_jax.curriculum import numbers
from fqs_jax.curriculum.recipe import HeldOut
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data.problems.task import DOCUMENT_FIELDS
from fqs_jax.model.lora import TARGETS, Lora
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig


def thought_config(
    config: ml_collections.ConfigDict, stage: Stage, **changes: Any
) -> ThoughtConfig:
    """The thoughts of a thinking stage.

    Args:
      changes: fields with other values than the config's.
    """
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


def lora_config(chosen: ml_collections.ConfigDict) -> Lora | None:
    """The adapters of a stage; None at rank 0 and for a config without the section.

    Args:
      chosen: `sections` of the stage.

    Raises:
      UserError: a target does not exist.
    """
    if (section := chosen.get("lora")) is None:
        return None
    if not isinstance(section.get("targets"), str) or not {"rank", "alpha"}.issubset(section):
        raise UserError(
            "the section lora needs rank, alpha and targets, such as q,v; see configs/common.py"
        )
    named = [name.strip() for name in section.targets.split(",")]
    in_order = [name for name in TARGETS if name in named]
    unknown = [name for name in named if name not in TARGETS]
    lora = Lora(section.rank, float(section.alpha), (*in_order, *unknown))
    return lora if lora.rank else None


def held_out(chosen: ml_collections.ConfigDict) -> HeldOut:
    """The measurement on held-out text; off for a config without the section.

    Args:
      chosen: `sections` of the stage.

    Raises:
      UserError: the section has other fields.
    """
    try:
        return HeldOut(**chosen.get("held_out", {}))
    except TypeError as error:
        raise UserError(
            "the section held_out has every, text, rows and keep_best; see configs/common.py"
        ) from error


def sections(
    config: ml_collections.ConfigDict, stage: Stage, names: Sequence[str]
) -> ml_collections.ConfigDict:
    """The named sections of a config, with the stage's own overrides applied.

    Args:
      names: the sections that a stage may override. Those that the config lacks are left out, and
        overrides of them are ignored: the record of a stage lacks sections that it does not use.

    Raises:
      UserError: an override names another field, or its value has another type or is out of range.
    """
    present = [name for name in names if name in config]
    chosen = ml_collections.ConfigDict({name: config[name].to_dict() for name in present})
    known = flatten_dict(chosen.to_dict(), sep=".")
    # A stage may choose which documents it reads, but not which problems exist.
    source = config.data.source
    data = {"data.seq_len"}
    if source == "text":
        data |= {"data.text"}
    else:
        data |= {"data.learn", *(f"data.{source}.{name}" for name in DOCUMENT_FIELDS)}
    for setting in stage.settings:
        field, equals, text = setting.partition("=")
        section = field.split(".")[0]
        if section in names and section not in present:
            continue
        try:
            if not equals or section == "data" and field not in data:
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
                f"a field of {', '.join(name for name in names if name != 'data')}, with data.seq_len, "
                "data.text, or data.learn and the shares of documents of the built-in task that is read"
            ) from error
        chosen.update_from_flattened_dict({field: value})
    numbers.check(chosen, f"stage_{stage.number}.settings: " if stage.settings else "")
    return chosen
