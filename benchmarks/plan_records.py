"""Plans as short records in a file, one JSON line each, so that nothing is compiled twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fqs_jax.planning import step_plan
from fqs_jax.planning.chips import Chip
from fqs_jax.planning.step_plan import Times

Record = dict[str, Any]


def read(path: Path) -> dict[str, Record]:
    """The records of a file by their commands; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["command"]: record for record in map(json.loads, lines)}


def append(path: Path, record: Record) -> None:
    """Add a record to a file."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def plan(words: list[str]) -> Record | None:
    """Compile a step in a process of its own, and keep what the tables show; None if the process failed.

    Args:
      words: arguments of `python -m fqs_jax.plan`.

    Returns:
      "command", "fits", and either "error" or: "needed" and "memory", bytes of a device; "bytes" by kind,
      None if the compiler ran out of memory; "flops" of all devices; "links", bytes by collective;
      "tokens" of text; "working_devices"; "compiled", seconds.
    """
    command = " ".join(words)
    print(command, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "fqs_jax.plan", *words, "--links", "--json"],
        capture_output=True,
        text=True,
    )
    if done.returncode == 2:  # the slice does not divide the rows, in one line
        return {"command": command, "fits": False, "error": done.stderr.strip()[:200]}
    if done.returncode not in (0, 1) or not done.stdout:
        print(f"failed with {done.returncode}:\n{done.stderr[-2000:]}", file=sys.stderr, flush=True)
        return None
    return short(command, json.loads(done.stdout.splitlines()[-1]))


def short(command: str, found: dict[str, Any]) -> Record:
    """The part of `python -m fqs_jax.plan --json` that is kept; see `plan`."""
    parts = ("arguments", "temporaries", "outputs", "peak")
    collectives = found["collectives"] or {}
    return {
        "command": command,
        "fits": found["fits"],
        "needed": round(found["needed"]),
        "memory": found["chip"]["memory"],
        "bytes": found["memory"] and {name: found["memory"][name] for name in parts},
        "flops": found["flops"],
        "links": {kind: round(each["bytes"]) for kind, each in collectives.items()},
        "tokens": found["text_tokens"],
        "working_devices": found["working_devices"],
        "compiled": round(found["compile_seconds"]),
    }


def times(record: Record, chip: Chip) -> Times:
    """The estimated seconds of a record's step, at plan's own utilisations.

    A step that the compiler refused has no known traffic: its links and memory count as 0.
    """
    flops, parts = record["flops"], record["bytes"] or {"arguments": 0, "outputs": 0}
    return step_plan.estimate(
        chip,
        (flops["program"] + flops["recomputed"]) / record["working_devices"],
        parts["arguments"] + parts["outputs"],
        sum(record["links"].values()),
    )
