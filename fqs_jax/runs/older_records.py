"""Records of earlier versions: the fields that they lack, with the values that mean "as it was then".

Whoever adds a field to configs/common.py adds it here (a test says so), so that runs that were begun before
it resume and get new stages. Fields of `Stage` are filled with their defaults.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fqs_jax.curriculum.recipe import HeldOut
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.data.problems.stories import Stories

_STORIES = {f"data.stories.{f.name}": f.default for f in dataclasses.fields(Stories)}
LATER: dict[str, Any] = {
    **{f"held_out.{f.name}": f.default for f in dataclasses.fields(HeldOut)},
    "log_every": 1,
    "checkpoint_every": 10,
    "checkpoint_minutes": 0.0,
    "keep_checkpoints": 2,
    "max_bad_steps": 10,
    "data.messages_key": "",
    "data.learn": "all",
    **{name: value for name, value in _STORIES.items() if not name.endswith(".seed")},
    **{f"data.{name}.answered_share": 1.0 for name in corpus.TASKS},
    "lora.rank": 0,
    "lora.alpha": 16.0,
    "lora.targets": "q,k,v,o,gate,up,down",
    "quiet_star.mixed_scale": 1.0,
    "quiet_star.likelihood": "each",
    "distill.positions": "all",
}


def completed(run: dict[str, Any]) -> dict[str, Any]:
    """A copy of a record in which no field is missing because it did not exist yet.

    A section that the record lacks as a whole stays away: it is not used by that stage.

    Args:
      run: the content of a run.json, or one like it in `folders.read_record`.
    """
    config = _copied(run["config"])
    for name, value in LATER.items():
        *parents, field = name.split(".")
        section = config
        if parents and parents[0] not in config:
            continue
        for parent in parents:
            section = section.setdefault(parent, {}) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.setdefault(field, _as_json(value))
    defaults = {
        field.name: _as_json(field.default)
        for field in dataclasses.fields(Stage)
        if field.default is not dataclasses.MISSING
    }
    return run | {"stage": defaults | run["stage"], "config": config}


def completed_origin(origin: dict[str, Any]) -> dict[str, Any]:
    """A copy of the content of W/source/origin.json in which no field of its built-in task is missing."""
    data = origin.get("data")
    task = data.get("source") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(data.get(task), dict):
        return origin
    prefix = f"data.{task}."
    later = {
        name.removeprefix(prefix): _as_json(value)
        for name, value in LATER.items()
        if name.startswith(prefix)
    }
    return origin | {"data": data | {task: later | data[task]}}


def _as_json(value: Any) -> Any:
    """A value as JSON returns it, where a tuple is a list."""
    return list(value) if isinstance(value, tuple) else value


def _copied(value: Any) -> Any:
    """The same dicts inside dicts, so that filling them leaves the original alone."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return value
