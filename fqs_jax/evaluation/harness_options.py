"""Options that the lm-evaluation-harness passes to a model: its arguments and a task's settings."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from fqs_jax.runtime.errors import UserError, printable

# Names of other models' arguments, and ours for the same thing.
_OURS = {"pretrained": "checkpoint", "model": "checkpoint", "path": "checkpoint"}
_GENERATION = {
    "until",
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "do_sample",
    "top_p",
}
BATCH_SIZE, _MOST_TEXTS = 8, 2**16  # texts at once: the default and the most
_FROM_THE_HARNESS = ("max_batch_size", "device", "trust_remote_code")


class Sampling(NamedTuple):
    """The settings of generated texts: stop texts, most new tokens, temperature (0 = greedy), nucleus."""

    until: list[str]
    max_new_tokens: int
    temperature: float
    top_p: float


def arguments(
    given: Mapping[str, Any], added: Mapping[str, Any], known: Collection[str]
) -> dict[str, Any]:
    """The arguments of a model: those in --model_args, then those from flags of the harness.

    Args:
      given: from --model_args.
      added: from the flags; --batch_size is always among them.
      known: names of arguments.

    Raises:
      UserError: a name is not known.
    """
    shown = ", ".join(name for name in known if name not in _FROM_THE_HARNESS)
    for name in given:
        if name in known or name in _FROM_THE_HARNESS:
            continue
        hint = f"; write {_OURS[name]}= for it" if name in _OURS else ""
        raise UserError(f"--model_args has no {printable(name, 60)!r}{hint}; there are {shown}")
    if given.get("checkpoint") in (None, ""):
        raise UserError(f"--model_args has no checkpoint=FOLDER; there are {shown}")
    both = {**added, **given}
    return {name: value for name, value in both.items() if value is not None and name in known}


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """The value of an argument that is a whole number.

    Raises:
      UserError: it is not one, or out of range.
    """
    number = _number(value)
    if number is None or number != int(number) or not least <= number <= most:
        raise UserError(f"{name} must be a whole number, {least} to {most}, not {_shown(value)}")
    return int(number)


def number(name: str, value: Any, least: float, most: float) -> float:
    """The value of an argument that is a number.

    Raises:
      UserError: it is not one, or out of range.
    """
    found = _number(value)
    if found is None or not least <= found <= most:
        raise UserError(f"{name} must be a number, {least:g} to {most:g}, not {_shown(value)}")
    return found


def switch(name: str, value: Any) -> bool:
    """The value of an argument that is True or False.

    Raises:
      UserError: it is neither.
    """
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1"):
        return True
    if str(value).lower() in ("false", "0"):
        return False
    raise UserError(f"{name} must be True or False, not {_shown(value)}")


def texts_at_once(batch_size: str | int | None) -> int:
    """The number of texts in a batch; `auto` asks for the largest that fits, which is not searched for.

    Raises:
      UserError: it is neither a number in range nor `auto`.
    """
    requested = "auto" if batch_size is None else str(batch_size)
    if requested.startswith("auto"):
        return BATCH_SIZE
    if not requested.isdecimal() or not 1 <= int(requested[:9]) <= _MOST_TEXTS:
        raise UserError(
            f"--batch_size is a number of texts, 1 to {_MOST_TEXTS}, or auto, not "
            f"{printable(requested, 60)}"
        )
    return int(requested)


def sampling(settings: Mapping[str, Any], max_gen_toks: int) -> Sampling:
    """The settings of a task's generated texts, with the names and defaults of the harness.

    Args:
      max_gen_toks: the most new tokens where the task does not say.

    Raises:
      UserError: a value is none that the setting can have.
    """
    from lm_eval.models import utils

    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list | tuple) or not all(isinstance(stop, str) for stop in until):
        raise UserError(f"until must be a text or a list of texts, not {_shown(until)}")
    for name in ("temperature", "top_p"):
        if settings.get(name) is not None:
            number(name, settings[name], 0.0, math.inf)
    kept = {name: value for name, value in settings.items() if value is not None}
    try:
        normal = utils.normalize_gen_kwargs({**kept, "until": list(until)}, max_gen_toks)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"these settings of generated texts cannot be used: {_shown(dict(settings))} ({error})"
        ) from error
    most = whole_number("max_gen_toks", normal["max_gen_toks"], 1, 2**31)
    temperature = float(normal.get("temperature", 0.0)) if normal.get("do_sample") else 0.0
    return Sampling(list(until), most, temperature, float(kept.get("top_p", 1.0)))


def unused(settings: Mapping[str, Any]) -> list[str]:
    """Names of a task's generation settings that have no effect here, such as num_beams."""
    return sorted(map(str, set(settings) - _GENERATION))


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _shown(value: Any) -> str:
    return printable(str(value), 80)
