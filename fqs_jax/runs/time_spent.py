"""The time of a stage since its first start, by what it was spent on, from its metrics file.

Every line states, under "time", its moment and the seconds since the line before, with those not spent on
steps. A resume drops the lines after its checkpoint; what they cost is carried into its own start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# "starting" is all until the first step that is no other kind; "twice" are steps that a resume takes again.
KINDS = ("starting", "compile", "scoring", "text", "steps", "held_out", "saving", "twice")
HELD_OUT = "held_out"  # an event, and what its time is spent on
# A field of a line: requests to a bucket that failed and were made again.
REPEATED = "repeated_requests"
_DIGITS = 4


class Stopwatch:
    """The seconds of this process, from its creation, that were spent on something by name."""

    def __init__(self) -> None:
        self.began = time.time()
        self._taken, self._parts = time.perf_counter(), dict[str, float]()

    @contextlib.contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """Count the time of this context as of a kind; contexts are not nested."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self._parts[kind] = self._parts.get(kind, 0.0) + spent

    def take(self) -> tuple[float, dict[str, float]]:
        """All seconds since the last call, and those counted by kind."""
        now, parts = time.perf_counter(), self._parts
        seconds, self._taken, self._parts = now - self._taken, now, {}
        return seconds, parts


@dataclasses.dataclass(frozen=True)
class Spent:
    """The time of stages.

    Attributes:
      seconds: by kind.
      since, until: the first start and the last line, in seconds since 1970.
      repeated: requests to a bucket that failed and were made again.
    """

    seconds: dict[str, float]
    since: float
    until: float
    repeated: int = 0

    @property
    def stopped(self) -> float:
        """The seconds in which nothing ran, or of which a kill has left no line."""
        return max(0.0, self.until - self.since - sum(self.seconds.values()))

    @property
    def total(self) -> float:
        """All seconds since the first start."""
        return sum(self.seconds.values()) + self.stopped

    @property
    def goodput(self) -> float:
        """The share of the time that was useful steps, from 0 to 1."""
        return self.seconds["steps"] / self.total if self.total else 0.0


def fields(parts: Mapping[str, float]) -> dict[str, float]:
    """The fields of a line for seconds by kind, and for the moment."""
    return {f"{kind}_seconds": round(spent, _DIGITS) for kind, spent in parts.items()} | {
        "at": round(time.time(), 3)
    }


def of(lines: Sequence[Mapping[str, Any]]) -> Spent | None:
    """The time of a stage, by what it was spent on.

    Args:
      lines: all rows of its metrics file in order, with those of events.

    Returns:
      None if no start says when it was, as in files of older versions.
    """
    if (since := first_start(lines)) is None:
        return None
    seconds, step = dict.fromkeys(KINDS, 0.0), 0
    for line in lines:
        for kind, spent in _parts(line, step).items():
            seconds[kind] += spent
        step = step if _is_aside(line) else line["step"]
    until = max([since, *(_number(_time(line).get("at")) for line in lines)])
    return Spent(seconds, since, until, sum(map(_repeated, lines)))


def together(stages: Iterable[Spent | None]) -> Spent | None:
    """The time of several stages; None if none is known."""
    known = [spent for spent in stages if spent is not None]
    if not known:
        return None
    seconds = {kind: sum(spent.seconds[kind] for spent in known) for kind in KINDS}
    since, until = min(spent.since for spent in known), max(spent.until for spent in known)
    return Spent(seconds, since, until, sum(spent.repeated for spent in known))


def first_start(lines: Iterable[Mapping[str, Any]]) -> float | None:
    """The time of a stage's first start, in seconds since 1970; None if it is not known."""
    found = [_number(_time(line).get("since")) for line in lines]
    return min((moment for moment in found if moment), default=None)


def last_compile(lines: Iterable[Mapping[str, Any]]) -> float | None:
    """Seconds that the last start took to compile its step; None if no line says so."""
    found = [_number(_time(line).get("compile_seconds")) for line in lines]
    return next((seconds for seconds in reversed(found) if seconds), None)


def carried(lines: Iterable[Mapping[str, Any]], first_step: int) -> dict[str, float]:
    """The seconds, by kind, of the lines that a resume drops, and their repeated requests.

    Steps after the checkpoint are lost.

    Of a row that spans the checkpoint, steps count evenly.

    Args:
      first_step: the step of the checkpoint; the lines after it are dropped, 0 = all lines.
    """
    seconds, before = dict.fromkeys(KINDS, 0.0), 0
    repeated = 0
    for line in lines:
        step = line["step"]
        if step > first_step or not first_step:
            repeated += _repeated(line)
            parts = _parts(line, before)
            lost = 0.0
            if line.get("event") == "start":  # the steps that it carries ended after the checkpoint
                parts["twice"] += parts.pop("steps")
            else:
                new = 0 if _is_aside(line) else max(0, step - before)
                lost = min(new, step - first_step) / new if new else 1.0
                seconds["twice"] += lost * sum(parts.values())
            for kind, spent in parts.items():
                seconds[kind] += (1 - lost) * spent
        before = before if _is_aside(line) else step
    found = {kind: round(spent, _DIGITS) for kind, spent in seconds.items() if spent}
    return found | ({REPEATED: repeated} if repeated else {})


def _parts(line: Mapping[str, Any], before: int) -> dict[str, float]:
    """The seconds of a line by kind; `before` is the step of the line before it."""
    found = _time(line)
    parts = {kind: _number(found.get(f"{kind}_seconds")) for kind in KINDS if kind != "steps"}
    if line.get("event") == "start":
        earlier = found.get("before")
        earlier = earlier if isinstance(earlier, dict) else {}
        return {kind: parts.get(kind, 0.0) + _number(earlier.get(kind)) for kind in KINDS}
    if "event" in line:
        seconds = _number(found.get("seconds"))
    else:
        seconds = _number(found.get("step_seconds")) * max(0, line["step"] - before)
    return parts | {"steps": max(0.0, seconds - sum(parts.values()))}


def _repeated(line: Mapping[str, Any]) -> int:
    """The repeated requests of a line, with those of the lines that a start carries."""
    before = _time(line).get("before")
    carried = before.get(REPEATED) if isinstance(before, dict) else 0
    return int(_number(_time(line).get(REPEATED)) + _number(carried))


def _is_aside(line: Mapping[str, Any]) -> bool:
    """True for an event between the rows of steps, whose own time is none of theirs."""
    return line.get("event") == HELD_OUT


def _time(line: Mapping[str, Any]) -> Mapping[str, Any]:
    found = line.get("time")
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float:
    """A number of seconds; 0 for what is none."""
    is_number = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return float(value) if is_number else 0.0
