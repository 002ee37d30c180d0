"""metrics.jsonl: one JSON line for each logged step of a stage, and one for each event.

Lines that cannot be read, because a kill or a power cut has torn them or a disk has damaged them, are
left out by every reader. In a bucket metrics.jsonl is a folder of parts (metrics_parts.py), with the same
lines.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fqs_jax.runs import metrics_parts, time_spent
from fqs_jax.runs.folders import free_name
from fqs_jax.runs.metrics_parts import Parts
from fqs_jax.runs.time_spent import Stopwatch
from fqs_jax.runtime import files, inputs, paths, processes, repeated_requests, schemas
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.notes import note

_SHOWN = 3  # numbers of lines in a message


class MetricsFile:
    """The metrics file of a stage, open for appending. Only process 0 writes.

    Values that depend on the machine stand under "time"; all else is a function of config, seed and
    data.

    Args:
      first_step: the step that the stage resumes from. Rows after it are dropped, and so are lines that
        cannot be read, with a note on stderr; 0 drops all.
      tokens_per_step: for tokens per second.
      watch: what else the time between rows is spent on; see `time_spent`.

    Attributes:
      measured: the events "held_out" in it, in order; in process 0, with those of earlier starts.
      compiled: seconds that the last start took to compile; None if that is not known.

    Raises:
      UserError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        first_step: int,
        tokens_per_step: int = 0,
        watch: Stopwatch | None = None,
    ):
        self._path, self._watch = path, watch or Stopwatch()
        self._since, self._before = self._watch.began, dict[str, float]()
        self.measured: list[dict[str, Any]] = []
        self.compiled: float | None = None
        self._file: _Appended | Parts
        if not processes.is_main():
            self._file = _Appended(Path(os.devnull))
        else:
            lines = _lines_before(path, first_step)
            kept = _kept(path, lines, first_step) if first_step else []
            rows = [line.row for line in lines if line.row is not None]
            self._since = time_spent.first_start(rows) or self._since
            self._before = time_spent.carried(rows, first_step)
            self.compiled = time_spent.last_compile(rows)
            self.measured = [
                row for row in events_of(rows, time_spent.HELD_OUT) if row["step"] <= first_step
            ]
            if paths.is_bucket(path):
                self._file = Parts(path, kept)
            else:
                files.replace(path, lambda file: file.write(b"".join(kept)))
                self._file = _Appended(path)
        self._tokens_per_step = tokens_per_step
        self._timed_step, self._clock = first_step, time.perf_counter()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.flush()
        except UserError:
            if kind is None:
                raise
        finally:
            self._file.close()

    def event(self, name: str, **fields: Any) -> None:
        """Write a row that holds no metrics of a step."""
        self._write({"event": name, **fields})

    def start(self, **fields: Any) -> None:
        """Write the event "start", with the time since the stopwatch began, and time steps from now on."""
        seconds, parts = self._watch.take()
        parts["starting"] = seconds - sum(parts.values())
        spent: dict[str, Any] = _spent(parts) | {"since": round(self._since, 3)}
        if self._before:
            spent["before"] = self._before
        self.event("start", **{schemas.FIELD: schemas.METRICS}, **fields, time=spent)
        self._clock = time.perf_counter()

    def end(self, step: int) -> None:
        """Write the event "end", with the time since the last row."""
        seconds = time.perf_counter() - self._clock
        spent = _spent(self._watch.take()[1])
        self.event("end", step=step, time={"seconds": round(seconds, 6), **spent})

    def step(self, step: int, values: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Write the row of a step with the time since the row before it, and return it.

        Raises:
          UserError: the disk refuses.
        """
        now = time.perf_counter()
        seconds = (now - self._clock) / max(1, step - self._timed_step)
        self._timed_step, self._clock = step, now
        row = {"step": step, **{key: _plain(value) for key, value in (values | fields).items()}}
        row["time"] = {
            "step_seconds": round(seconds, 6),
            "tokens_per_second": round(self._tokens_per_step / seconds, 1),
        } | _spent(self._watch.take()[1])
        self._write(row)
        return row

    def held_out(
        self, step: int, losses: dict[str, float], text: str, seconds: float
    ) -> dict[str, Any]:
        """Write the event "held_out", and return it.

        Args:
          text: what identifies the rows that were measured.
          seconds: what measuring took, which is no time of a step.
        """
        self._clock += seconds
        spent = {"seconds": round(seconds, 6), **time_spent.fields({time_spent.HELD_OUT: seconds})}
        values = {name: _plain(value) for name, value in losses.items()}
        row = {"event": time_spent.HELD_OUT, "step": step, "text": text, **values, "time": spent}
        self.measured.append(row)
        self._write(row)
        return row

    def flush(self) -> None:
        """Wait until everything so far survives a power cut.

        Raises:
          UserError: the disk refuses.
        """
        if processes.is_main():
            try:
                self._file.flush()
            except OSError as error:
                raise self._refused(error) from error

    def _write(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {error.strerror}; make room, and run the same command again to "
            "resume"
        )


class _Appended:
    """A file that each line is appended to at once."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)  # a kill loses no row

    def write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:  # a disk that is nearly full takes a part
            rest = rest[self._file.write(rest) :]

    def flush(self) -> None:
        """Wait until everything so far survives a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Line(NamedTuple):
    """A line of a metrics file.

    Attributes:
      text: its bytes, with the end of the line.
      row: its content; None if it cannot be read.
    """

    text: bytes
    row: dict[str, Any] | None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The metric rows of a stage in order, without events; none if the file does not exist.

    Numbers that were not finite are None.
    """
    return steps_of(read_lines(path))


def read_events(path: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a stage's events that have this name, in order."""
    return events_of(read_lines(path), name)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All rows of a stage in order, with those of events; see `steps_of` and `events_of`.

    Raises:
      UserError: they cannot be read, or are of a newer version of this program.
    """
    return [line.row for line in _lines(path) if line.row is not None]


def steps_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those rows that hold the metrics of a step."""
    return [row for row in rows if "event" not in row]


def events_of(rows: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Those rows that are events of this name."""
    return [row for row in rows if row.get("event") == name]


def _lines_before(path: Path, first_step: int) -> list[_Line]:
    """All lines of earlier starts; none if they cannot be read, and are only wanted for their times."""
    try:
        return list(_lines(path))
    except UserError:
        if first_step:
            raise
        return []


def _kept(path: Path, lines: list[_Line], first_step: int) -> list[bytes]:
    """The lines up to a step. If others are lost between readable ones, the file is kept under a new name."""
    readable = [number for number, line in enumerate(lines, 1) if line.row is not None]
    lost = [number for number, line in enumerate(lines, 1) if line.row is None]
    # A last line without its end is what every kill may leave.
    if lost and not (
        lost == [len(lines)] and not lines[-1].text.endswith(b"\n") and _is_text(lines)
    ):
        kept_as = ""
        if readable and lost[0] < readable[-1] and not path.is_dir():
            copy = free_name(path.with_name(f"{path.name}.damaged"))
            shutil.copyfile(path, copy)
            kept_as = f"; the file as it was is now {copy.name}"
        some = ", ".join(map(str, lost[:_SHOWN])) + ", ..." * (len(lost) > _SHOWN)
        note(
            f"{len(lost)} of {len(lines)} lines of {path} cannot be read and are left out "
            f"({some}){kept_as}"
        )
    return [line.text for line in lines if line.row is not None and line.row["step"] <= first_step]


def _is_text(lines: list[_Line]) -> bool:
    """True if the last line is the beginning of a row, and not what a power cut leaves."""
    return b"\0" not in lines[-1].text


def _lines(path: Path) -> Iterator[_Line]:
    """All lines of a file that are not empty.

    Raises:
      UserError: it cannot be read, or is of a newer version.
    """
    for text in _texts(path):
        row = _row(text)
        if row is not None and row.get("event") == "start":
            schemas.check(row, schemas.METRICS, path)
        yield _Line(text, row)


def _texts(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        for part in metrics_parts.read(path):
            yield from part.splitlines(keepends=True)
    elif path.exists():
        with inputs.open_file(path) as file:
            yield from (text for text in file if text.strip())


def _row(text: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is no whole row of a step or an event."""
    if not text.endswith(b"\n"):
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) is int else None


def _spent(parts: dict[str, float]) -> dict[str, Any]:
    """The fields of a line for seconds by kind, for the moment, and for requests that were repeated."""
    repeated = repeated_requests.take()
    return time_spent.fields(parts) | ({time_spent.REPEATED: repeated} if repeated else {})


def _plain(value: Any) -> Any:
    """A number as Python has it; None for NaN and infinities, which JSON lacks."""
    if isinstance(value, jax.Array | np.generic | np.ndarray):
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
