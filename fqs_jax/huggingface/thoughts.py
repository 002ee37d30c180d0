"""The thought parameters beside the weights, and their settings: read as carefully as a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from fqs_jax.huggingface import finite
from fqs_jax.huggingface.fields import Json, integer, number, shown, text
from fqs_jax.huggingface.headers import check_type, opened, place
from fqs_jax.huggingface.tensors import THOUGHT
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

_MOST_PASSES = 1024  # of a thought; more is no setting of a model that was trained

_LEAST_TEMPERATURE = 1e-6  # that logits of float32 can be divided by


def _passes(raw: Json, key: str) -> int:
    return integer(raw, key, most=_MOST_PASSES)


def _temperature(raw: Json, key: str) -> float:
    value = number(raw, key, least=0, most=1e4)
    if 0 < value < _LEAST_TEMPERATURE:
        raise UserError(f"{key} should be 0 or at least {_LEAST_TEMPERATURE:g}, found {value:g}")
    return value


# A reader for each setting, which is a field of ThoughtConfig.
SETTINGS: dict[str, Callable[[Json, str], Any]] = {
    "n_ahead": _passes,
    "n_ahead_talk": _passes,
    "rationales": _passes,
    "mixing": text,
    "mixing_bias": lambda raw, key: number(raw, key, least=-1e4, most=1e4),
    "embedding_scale": lambda raw, key: number(raw, key, least=1e-6, most=1e6),
    "temperature": _temperature,
    "reinforce_temperature": lambda raw, key: number(raw, key, least=_LEAST_TEMPERATURE, most=1e4),
    "tokens": text,
}


def load_thought_settings(folder: str | Path, vocab_size: int) -> dict[str, Any] | None:
    """The settings of the thoughts that `export` wrote into the header of their file.

    Returns:
      The fields of a ThoughtConfig; None if the folder has no thought parameters.

    Raises:
      UserError: the file is damaged, or a setting is unknown, missing, of another type or out of range.
    """
    file = Path(folder) / THOUGHT
    if not os.path.lexists(file):
        return None
    with opened(file) as handle:
        stored = (handle.metadata() or {}).get("settings", "{}")
    try:
        return _parse(stored, vocab_size)
    except UserError as error:
        raise UserError(f"{inputs.name(file)}: its settings are unusable: {error}") from error


def _parse(stored: str, vocab_size: int) -> dict[str, Any]:
    try:
        raw = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise UserError(f"they are not valid JSON ({printable(str(error), 100)})") from error
    if not isinstance(raw, dict):
        raise UserError(f"they should be a JSON object, found {shown(raw)}")
    if unknown := sorted(raw.keys() - SETTINGS.keys() - {"masked_ids"}):
        raise UserError(f"{shown(unknown[0])} is not known to this version of fqs_jax")
    # Missing settings have the defaults of ThoughtConfig; only n_ahead has none.
    fields = {
        key: read(raw, key) for key, read in SETTINGS.items() if key in raw or key == "n_ahead"
    }
    masked = raw.get("masked_ids", [])
    if not isinstance(masked, list):
        raise UserError(f"masked_ids should be a list of token ids, found {shown(masked)}")
    positions = {f"masked_ids[{i}]": value for i, value in enumerate(masked)}
    fields["masked_ids"] = tuple(
        integer(positions, key, least=0, most=vocab_size - 1) for key in positions
    )
    return fields


def load_thought(folder: str | Path, expected: Mapping[str, tuple[int, ...]]) -> Params:
    """The `thought` parameter tree that `export` wrote beside the weights.

    Args:
      expected: the shapes of its leaves, by path with dots.

    Raises:
      UserError: the file is damaged, or its tensors have other names, shapes or types, or values that
        are NaN or infinite.
    """
    file = Path(folder) / THOUGHT
    leaves = {}
    with opened(file) as handle:
        names = list(handle.keys())
        for name in [*expected, *names]:
            if name not in names:
                raise UserError(f"{place(file, name)} of shape {expected[name]} is missing")
            if name not in expected:
                raise UserError(f"{place(file, name)} is not one of these thoughts")
        for name, shape in expected.items():
            header = handle.get_slice(name)
            if (stored := tuple(header.get_shape())) != shape:
                found = printable(str(stored), 100)
                raise UserError(f"{place(file, name)} has shape {found}, the model implies {shape}")
            check_type(file, name, header)
            leaves[tuple(name.split("."))] = tensor = handle.get_tensor(name)
            finite.check_finite(tensor, place(file, name))
    return traverse_util.unflatten_dict(leaves)
