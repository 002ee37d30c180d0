"""All training steps compared with the published code: `python -m benchmarks.steps_table [--shapes=A,B]`.

Runs benchmarks/train_step.py for each step in its own process with one thread and prints its JSON line,
then the summary table, and for 16/8 of shape A the ratio to the plain step at several text lengths.
"Faster" divides the published code's time by ours. They were not measured in one run, and their torch
multiplies matrices at the rate that it has as installed: docs/performance.md has the figures side by side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from absl import app, flags

from benchmarks import shapes

LENGTHS = (128, 256, 512, 1024)
_FLAT = "1"  # the stage that is measured at these lengths


def define_flags() -> None:
    flags.DEFINE_list("shapes", ["A", "B"], "Shapes to measure.")
    flags.DEFINE_list(
        "stages", list(shapes.NAMES), "Stages to measure, always with 0, the plain step."
    )
    flags.DEFINE_integer("steps", 5, "Timed steps for each.", 1)
    flags.DEFINE_bool("lengths", True, "Also measure 16/8 of shape A by text length.")


def main(_: list[str]) -> None:
    from rich.console import Console

    console, given = Console(width=150), flags.FLAGS
    for shape in given.shapes:
        stages = sorted({"0", *given.stages})
        rows = {stage: shown(measured(shape, stage, given.steps)) for stage in stages}
        console.print(table(shape, rows))
    if given.lengths:
        pairs = {
            length: [shown(measured("A", s, given.steps, length)) for s in ("0", _FLAT)]
            for length in LENGTHS
        }
        console.print(lengths_table(pairs))


def measured(shape: str, stage: str, steps: int = 5, length: int | None = None) -> dict[str, Any]:
    """The result of benchmarks/train_step.py for one step."""
    command = [sys.executable, "-m", "benchmarks.train_step", f"--shape={shape}"]
    command += [f"--stage={stage}", f"--steps={steps}", "--threads=1"]
    command += [f"--seq_len={length}"] if length else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """The row, which is printed as a JSON line."""
    print(json.dumps(row), flush=True)
    return row


def table(shape: str, rows: dict[str, dict[str, Any]]) -> Any:
    """The summary of the steps of a shape, as a rich table."""
    from rich.table import Table

    columns = "seconds", "floor", "ratio", "GEMM", "published", "faster", "MB", "published MB"
    found = Table("step", *columns, "to plain", "published", title=f"Shape {shape}, one thread")
    published, plain = shapes.PUBLISHED_SECONDS[shape], rows["0"]["seconds_median"]
    for stage, row in rows.items():
        seconds, gemm = row["seconds_median"], row["gemm_gflops"]
        theirs, memory = published[stage], shapes.PUBLISHED_MB[shape].get(stage)
        found.add_row(
            shapes.NAMES[stage],
            f"{seconds:.3f}",
            f"{row['floor_seconds']:.3f}",
            f"{row['ratio_to_floor']:.2f}",
            f"{gemm:.0f}",
            f"{theirs:.3f}",
            f"{theirs / seconds:.2f}x",
            f"{row['peak_rss_over_startup_mb']:.0f}",
            "" if memory is None else f"{memory}",
            f"{seconds / plain:.1f}",
            f"{theirs / published['0']:.1f}",
        )
    return found


def lengths_table(pairs: dict[int, list[dict[str, Any]]]) -> Any:
    """Ratios to the plain step by text length; constant if attention does not dominate."""
    from rich.table import Table

    columns = "seconds", "ratio to floor", "MB", "plain seconds", "to plain"
    found = Table("tokens", *columns, title=f"Shape A, {shapes.NAMES[_FLAT]}, by text length")
    for length, (plain, thinks) in pairs.items():
        seconds, base = thinks["seconds_median"], plain["seconds_median"]
        found.add_row(
            str(length),
            f"{seconds:.3f}",
            f"{thinks['ratio_to_floor']:.2f}",
            f"{thinks['peak_rss_over_startup_mb']:.0f}",
            f"{base:.3f}",
            f"{seconds / base:.1f}",
        )
    return found


if __name__ == "__main__":
    define_flags()
    app.run(main)
