"""Metrics on disk and progress on the screen."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fqs_jax.runtime import files, processes


class MetricsFile:
    """JSON lines, one a logged step. A resumed run drops the rows after the step it resumes from.
    Of several processes the first one writes.

    Values that depend on the machine stand under "time"; all else is a function of config, seed and
    data.
    """

    def __init__(self, path: Path, first_step: int, tokens_per_step: int = 0):
        if processes.is_main():
            kept = (
                [line for line in _lines(path) if json.loads(line)["step"] <= first_step]
                if first_step
                else []
            )
            content = "".join(f"{line}\n" for line in kept).encode()
            files.replace(path, lambda file: file.write(content))
        else:
            path = Path(os.devnull)
        self._tokens_per_step = tokens_per_step
        self._timed_step, self._clock = first_step, time.perf_counter()
        self._file = path.open("a")

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._file.close()

    def event(self, name: str, **fields: Any) -> None:
        """A row that is no step's metrics."""
        self._write({"event": name, **fields})

    def start_clock(self) -> None:
        """Steps are timed from now on."""
        self._clock = time.perf_counter()

    def step(self, step: int, values: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Write the row of a step with the time since the row before it, and return it."""
        now = time.perf_counter()
        seconds = (now - self._clock) / max(1, step - self._timed_step)
        self._timed_step, self._clock = step, now
        row = {"step": step, **{key: _plain(value) for key, value in (values | fields).items()}}
        row["time"] = {
            "step_seconds": round(seconds, 6),
            "tokens_per_second": round(self._tokens_per_step / seconds, 1),
        }
        self._write(row)
        return row

    def flush(self) -> None:
        """Everything so far is on disk afterwards."""
        self._file.flush()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The metric rows of a stage, without events."""
    return [row for row in map(json.loads, _lines(path)) if "event" not in row]


def read_events(path: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one event of a stage."""
    return [row for row in map(json.loads, _lines(path)) if row.get("event") == name]


def _lines(path: Path) -> list[str]:
    """Whole lines of a file; a last line cut by a kill is dropped."""
    if not path.exists():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]


def _plain(value: Any) -> Any:
    """Numbers as JSON has them; NaN and infinities as strings, which JSON lacks."""
    if isinstance(value, jax.Array | np.generic | np.ndarray):
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
