"""The versions of the files of metrics and results that other programs read (docs/training_metrics.md).

A version is raised when a field is removed or means something else; a new field raises none. Files
without a version are of the first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

FIELD = "schema"
METRICS = 1  # of metrics.jsonl, in every event "start"
COMPARISON = 1  # of evaluation.json
CELL = 1  # of result.json, of a sweep


def check(content: Mapping[str, Any], known: int, path: Path) -> None:
    """Refuse a file of a newer version.

    Args:
      content: its JSON object, or the line that has the version.
      known: the version that is read here.

    Raises:
      UserError: it is newer, or no version.
    """
    version = content.get(FIELD, known)
    if type(version) is int and version <= known:
        return
    raise UserError(
        f"{inputs.name(path)} was written by a newer fqs_jax (schema {printable(repr(version), 40)}, this "
        f"one reads up to {known}): install that version, or a newer one"
    )
