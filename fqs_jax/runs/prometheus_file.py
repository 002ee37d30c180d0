"""The newest metrics of a stage as a text file of Prometheus, for its node exporter's textfile collector.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text-based format).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fqs_jax.runtime import files

_OTHER = re.compile(r"[^a-zA-Z0-9_]")


def text(row: Mapping[str, Any], stage: str) -> str:
    """The content of the file: one gauge for each number, named fqs_FIELD and labelled with the stage.

    Args:
      row: of metrics.jsonl. A number that was not finite is None there, and NaN here.
    """
    escaped = stage.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    numbers = {**{key: value for key, value in row.items() if key != "time"}, **row.get("time", {})}
    lines = []
    for key, value in sorted(numbers.items()):
        name = "fqs_" + _OTHER.sub("_", key)
        shown = "NaN" if value is None else repr(value)
        lines += [f"# TYPE {name} gauge", f'{name}{{stage="{escaped}"}} {shown}']
    return "\n".join(lines) + "\n"


class PrometheusFile:
    """A file that always holds the newest value of every field, whole."""

    def __init__(self, path: Path, stage: str):
        self._path, self._stage = path, stage
        self._newest: dict[str, Any] = {}  # rows of steps and of held-out text have other fields

    def step(self, row: Mapping[str, Any]) -> None:
        """Replace the file.

        Raises:
          UserError: the disk refuses.
        """
        self._newest |= row
        content = text(self._newest, self._stage).encode()
        files.replace(self._path, lambda file: file.write(content))

    def close(self) -> None:
        """Nothing: the last row stays."""
