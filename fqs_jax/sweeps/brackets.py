"""Brackets: settings of one thing that are all tried (choosing.py takes the best)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps.variants import Setting

_LONGEST_NAME = 80  # characters of a folder


def check(bracket: Sequence[Setting], overrides: Sequence[str]) -> None:
    """Check that settings can be compared.

    Args:
      overrides: those of the variant itself.

    Raises:
      UserError: there is one setting alone; two name different fields, or are equal; a field is set by
        the variant too.
    """
    if not bracket:
        return
    if len(bracket) == 1:
        raise UserError(
            f"its bracket has one setting, {text(bracket[0])}; give more, or make it an override"
        )
    fields = [[override.partition("=")[0] for override in setting] for setting in bracket]
    for setting, own in zip(bracket, fields, strict=True):
        if not own or len(set(own)) < len(own):
            raise UserError(
                f"setting {text(setting)!r} of its bracket names no field, or one twice"
            )
        if set(own) != set(fields[0]):
            raise UserError(
                f"settings {text(bracket[0])} and {text(setting)} of its bracket name different "
                "fields; a bracket is of one thing"
            )
    if twice := set(fields[0]) & {override.partition("=")[0] for override in overrides}:
        raise UserError(f"{min(twice)} is set by its overrides and by its bracket; leave one out")
    seen: dict[tuple[tuple[str, str | float], ...], Setting] = {}
    for setting in bracket:
        key = tuple(sorted((field, _value(value)) for field, value in _values(setting).items()))
        if key in seen:
            raise UserError(
                f"settings {text(seen[key])} and {text(setting)} of its bracket are the same"
            )
        seen[key] = setting


def text(setting: Setting) -> str:
    """A setting for people."""
    return " ".join(setting)


def folder(setting: Setting) -> str:
    """The name of a setting's folder, a function of the setting alone.

    Characters that a name should not have become "_". A name that lost something that way, or by its
    length, ends in a digest of the whole setting.
    """
    whole = ",".join(setting)
    name = re.sub(r"[^A-Za-z0-9_.+=,-]", "_", whole)
    if name == whole and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def is_at_edge(setting: Setting, bracket: Sequence[Setting]) -> bool:
    """True if a number of the setting is the least or the greatest one of the bracket.

    Then a better value may lie beyond. Words have no order, and so no edge; a number that is the same in
    all settings has none either.
    """
    for field, value in _values(setting).items():
        numbers = [_value(_values(other)[field]) for other in bracket]
        found = [number for number in numbers if isinstance(number, float)]
        if len(found) < len(numbers) or len(set(found)) == 1:
            continue
        if _value(value) in (min(found), max(found)):
            return True
    return False


def _values(setting: Setting) -> dict[str, str]:
    """The value of each field, as text."""
    pairs = (override.partition("=") for override in setting)
    return {field: value for field, _, value in pairs}


def _value(value: str) -> float | str:
    """A number where the text is one, so that 1e-3 is 0.001; else small letters, as folders have."""
    try:
        number = float(value)
    except ValueError:
        return value.lower()
    return value if math.isnan(number) else number
