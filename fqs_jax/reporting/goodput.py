"""Goodput: where the time of a run went since its first start, as a line, as JSON and as a picture."""

from __future__ import annotations

from typing import Any

from fqs_jax.reporting import charts
from fqs_jax.reporting.sections import figure
from fqs_jax.runs.time_spent import Spent

NAMES = {
    "steps": "steps",
    "compile": "compiling",
    "starting": "starting",
    "text": "waiting for text",
    "scoring": "scoring by teachers",
    "held_out": "held-out text",
    "saving": "saving",
    "twice": "steps done twice",
    "stopped": "not running",
}


def line(spent: Spent) -> str:
    """One line: the share of the time that was steps, and what took the rest."""
    parts = ", ".join(
        f"{NAMES[kind]} {duration(seconds)}" for kind, seconds in _seconds(spent).items() if seconds
    )
    whole = duration(spent.total)
    repeated = (
        f"; requests to the bucket that were repeated: {spent.repeated}" if spent.repeated else ""
    )
    return f"goodput {spent.goodput:.1%}: of {whole} since the first start, {parts}{repeated}"


def as_json(spent: Spent | None) -> dict[str, Any] | None:
    """Goodput from 0 to 1, seconds by kind, and repeated requests; None if nothing is known."""
    if spent is None:
        return None
    seconds = _seconds(spent)
    return {"goodput": spent.goodput, "seconds": seconds, "repeated_requests": spent.repeated}


def section(spent: Spent | None) -> str:
    """The HTML of a picture with a bar for each kind; "" if nothing is known."""
    if spent is None or not spent.total:
        return ""
    bars = [
        (NAMES[kind], seconds / spent.total, f"{duration(seconds)}, {seconds / spent.total:.1%}")
        for kind, seconds in _seconds(spent).items()
        if seconds
    ]
    chart = charts.share_chart(bars, line(spent))
    unit = f"{spent.goodput:.1%} of {duration(spent.total)} were steps"
    if spent.repeated:
        unit += f"; {spent.repeated} requests to the bucket were repeated"
    drawn = figure("Where the time went since the first start", unit, chart)
    return f'<div class="charts">{drawn}</div>'


def duration(seconds: float) -> str:
    """Seconds as people say them: 12.3 s, 4 min 05 s, 3 h 07 min, 2 d 03 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole // 60 % 60:02d} min"
    return f"{whole // 86400} d {whole // 3600 % 24:02d} h"


def _seconds(spent: Spent) -> dict[str, float]:
    """All seconds by kind, steps first."""
    every = {**spent.seconds, "stopped": spent.stopped}
    return {kind: every[kind] for kind in NAMES}
