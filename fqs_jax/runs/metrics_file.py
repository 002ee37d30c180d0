"""metrics.jsonl: one JSON line for each logged step of a stage, and one for each event."""

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
    """The metrics file of a stage, open for appending. Only process 0 writes.

    Values that depend on the machine stand under "time"; all else is a function of config, seed and
    data.

    Args:
      first_step: the step that the stage resumes from. Rows after it are dropped; 0 drops all.
      tokens_per_step: for tokens per second.
    """

    def __init__(self, path: Path, first_step: int, tokens_per_step: int = 0):
        if processes.is_main():
            before = _lines(path) if first_step else []
            valid = [f"{line}\n" for line in before if json.loads(line)["step"] <= first_step]
            files.write_text(path, "".join(valid))
        else:
            path = Path(os.devnull)
        self._tokens_per_step = tokens_per_step
        self._timed_step, self._clock = first_step, time.perf_counter()
        self._file = path.open("a", buffering=1)  # a kill loses no row

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._file.close()

    def event(self, name: str, **fields: Any) -> None:
        """Write a row that holds no metrics of a step."""
        self._write({"event": name, **fields})

    def start_clock(self) -> None:
        """Time steps from now on."""
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
        """Wait until everything so far survives a power cut."""
        if processes.is_main():
            os.fsync(self._file.fileno())

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The metric rows of a stage in order, without events; none if the file does not exist."""
    return [row for row in map(json.loads, _lines(path)) if "event" not in row]


def read_events(path: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a stage's events that have this name, in order."""
    return [row for row in map(json.loads, _lines(path)) if row.get("event") == name]


def _lines(path: Path) -> list[str]:
    """The whole lines of a file. A last line that a kill has cut is dropped."""
    if not path.exists():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]


def _plain(value: Any) -> Any:
    """A number as Python has it; NaN and infinities, which JSON lacks, as strings."""
    if isinstance(value, jax.Array | np.generic | np.ndarray):
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
