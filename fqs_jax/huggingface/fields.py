"""Typed fields of a JSON object from outside, each checked for its type and range.

`true` is no number, `"false"` is no switch, and an integer of 400 digits is out of range. Errors are one
line and name the field; the caller adds the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fqs_jax.runtime.errors import UserError, printable

Json = Mapping[str, Any]

MOST_INTEGER = 2**31 - 1  # sizes and ids are indices of 32 bits


def number(
    raw: Json, key: str, default: float | None = None, *, least: float, most: float
) -> float:
    """A finite number from `least` to `most`; null counts as missing.

    Raises:
      UserError: it is missing without a default, no number, or out of range.
    """
    value = _value(raw, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key} should be a number, found {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} should be a number, found {shown(value)}")
    if value < least:
        raise UserError(f"{key} should be at least {least:g}, found {shown(value)}")
    if value > most:
        raise UserError(f"{key} should be at most {most:g}, found {shown(value)}")
    return float(value)


def integer(
    raw: Json, key: str, default: int | None = None, *, least: int = 1, most: int = MOST_INTEGER
) -> int:
    """A whole number from `least` to `most`; see `number`."""
    value = number(raw, key, default, least=least, most=most)
    if value != int(value):
        raise UserError(f"{key} should be an integer, found {shown(value)}")
    return int(value)


def switch(raw: Json, key: str, default: bool = False) -> bool:
    """True or false; null counts as missing.

    Raises:
      UserError: it is anything else, such as the text "false".
    """
    value = _value(raw, key, default)
    if not isinstance(value, bool):
        raise UserError(f"{key} should be true or false, found {shown(value)}")
    return value


def text(raw: Json, key: str, default: str | None = None) -> str:
    """A text; null counts as missing.

    Raises:
      UserError: it is missing without a default, or no text.
    """
    value = _value(raw, key, default)
    if not isinstance(value, str):
        raise UserError(f"{key} should be a text, found {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A JSON value as errors show it: one line, cut to a readable length."""
    if isinstance(value, int) and abs(value) >= 10**30:  # Python refuses to print the longest ones
        return "an integer of more than 30 digits"
    return printable(repr(value), 60)


def _value(raw: Json, key: str, default: Any) -> Any:
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"key {key!r} is missing")
    return value
