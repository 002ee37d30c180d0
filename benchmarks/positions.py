"""Cost and gain of thinking at some positions only: `python -m benchmarks.positions`.

Prints JSON lines, then tables. One thread, CPU, float32. Parts (`--part`):

    cost      CPU seconds and model FLOPs of a 16/8 step on shape A (benchmarks/train_step.py)
    variance  of the gradient of configs/shorten.py's first thinking stage, shortly after its start
    learning  that stage trained from one base: held-out answers after equal steps and equal FLOPs

Keys of a line of `variance`, for estimates of one gradient from `draws` keys. All variances are traces,
divided by the squared norm of the mean gradient:

    batch         `same`: all draws use one batch; `fresh`: each has its own
    flops         FLOPs of the step, relative to thinking everywhere
    variance, variance_error   variance, and its standard error over draws
    from_choice   the part that choosing positions adds: mean squared distance to the gradient of the
                  same batch and thoughts at all positions. The rest is the variance of thinking everywhere
    efficiency    variance times FLOPs relative to thinking everywhere; below 1, thinking at some
                  positions and averaging more such steps is the better use of the same arithmetic
"""

from __future__ import annotations

import os
from typing import Any

from absl import app, flags

from benchmarks.shapes import COMPUTE, RATIONALES, SHAPES, THOUGHTS

PARTS = ("cost", "variance", "learning")
_PART = flags.DEFINE_multi_enum("part", list(PARTS), PARTS, "What to run; may be repeated.")
_STEPS = flags.DEFINE_integer("steps", 7, "Timed steps for a row of cost.", 1)
_DRAWS = flags.DEFINE_integer("draws", 128, "Gradients for a variance.", 2)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trained models for a row of learning.", 1)
_FULL_STEPS = flags.DEFINE_integer("full_steps", 120, "Steps of learning, thinking everywhere.", 4)

EVERYWHERE = (1.0, "uniform")
SOME = [(fraction, kind) for fraction in (0.5, 0.25, 0.125) for kind in ("uniform", "high_entropy")]
LEARNING = [kind for kind in SOME if kind[0] == 0.25]

Rows = list[dict[str, Any]]


def main(_: list[str]) -> None:
    # Before JAX starts its thread pools, which are as wide as the CPUs that this process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from benchmarks import position_gains

    tables: dict[str, Rows] = {}
    if "cost" in _PART.value:
        tables["cost"] = _cost()
    if "variance" in _PART.value or "learning" in _PART.value:
        setting = position_gains.prepare()
        if "variance" in _PART.value:
            kinds = [EVERYWHERE, *SOME]
            tables["variance"] = position_gains.variances(setting, kinds, _DRAWS.value)
        if "learning" in _PART.value:
            kinds = [EVERYWHERE, *LEARNING]
            tables["learning"] = position_gains.learning(
                setting, kinds, range(_SEEDS.value), _FULL_STEPS.value
            )
    for name, rows in tables.items():
        _print_table(name, rows)


def _cost() -> Rows:
    from benchmarks import measure
    from fqs_jax.objectives.thought_losses import QuietStarConfig

    rows: Rows = []
    for fraction, kind in (EVERYWHERE, *SOME):
        labels = {"part": "cost", "fraction": fraction, "positions": kind}
        step = measure.kind(
            SHAPES["A"],
            THOUGHTS["1"],
            RATIONALES,
            ntp=False,
            length=None,
            compute=COMPUTE,
            settings=QuietStarConfig(position_fraction=fraction, positions=kind),
        )
        found = measure.print_step(step, _STEPS.value, 1, labels)
        first = rows[0] if rows else found
        rows.append(
            {
                "fraction": fraction,
                "positions": kind,
                "seconds": found["seconds_median"],
                "gflop": found["flops"] / 1e9,
                "gemm_gflops": found["gemm_gflops"],
                "peak_mb": found["peak_rss_over_startup_mb"],
                "flops": found["flops"],
                "seconds_median": found["seconds_median"],
                "time_ratio": found["seconds_median"] / first["seconds_median"],
                "flop_ratio": found["flops"] / first["flops"],
            }
        )
    return [{k: v for k, v in row.items() if k not in ("flops", "seconds_median")} for row in rows]


def _print_table(name: str, rows: Rows) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    app.run(main)
