"""Regression gate for the cost of a training step: `python -m benchmarks.gate [--timed] [--update]`.

Compares figures with the table of benchmarks/gate.json, prints a JSON line for each step, and exits with 1
if a figure exceeds that of the table by more than its margin. The figures are those of shape A
(benchmarks/train_step.py):

    flops_over_minimal      FLOPs of the traced program over the minimal ones (fqs_jax/thinking/flops.py)
    temporaries_over_plain  bytes of temporaries, over those of the plain step on the same rows
    instructions, fusions   in the compiled program
    ratio_to_floor          seconds over those of the minimal FLOPs at the rate of a matrix product
    ratio_to_plain          seconds over those of the plain step on the same rows

All but the last two are counted and do not depend on the machine. Figures of compiled programs are compared
only under the JAX version of the table. The last two need --timed, a quiet machine and minutes. --update
writes the table.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import shapes

TABLE = Path(__file__).with_suffix(".json")
# Relative excess over the table that is allowed.
MARGINS = {
    "flops_over_minimal": 0.002,
    "temporaries_over_plain": 0.05,
    "instructions": 0.10,
    "fusions": 0.10,
    "ratio_to_floor": 0.15,
    "ratio_to_plain": 0.15,
}
OF_COMPILER = ("temporaries_over_plain", "instructions", "fusions")
COUNTED = {"flops_over_minimal", *OF_COMPILER}
# The machine code is never run, and everything that is counted is decided before it is generated.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

Figures = dict[str, float]
Table = dict[str, Figures]


def define_flags() -> None:
    flags.DEFINE_bool("timed", False, "Time steps too.")
    flags.DEFINE_bool("update", False, "Write the table instead of comparing with it.")


def main(_: list[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    found = counted()
    if flags.FLAGS.timed:
        for name, figures in timed().items():
            found[name] |= figures
    for name, figures in found.items():
        print(json.dumps({"step": name} | figures), flush=True)
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {"steps": {}}
    if flags.FLAGS.update:
        # Without --timed, the times in the table stay.
        steps = {name: table["steps"].get(name, {}) | figures for name, figures in found.items()}
        TABLE.write_text(json.dumps({"jax": jax.__version__, "steps": steps}, indent=2) + "\n")
        return
    complaints = dearer(found, table["steps"], same_compiler=table["jax"] == jax.__version__)
    print("\n".join(complaints) or "no figure exceeds the table", flush=True)
    sys.exit(bool(complaints))


def counted(steps: tuple[str, ...] = tuple(shapes.NAMES)) -> Table:
    """Figures of traced and compiled programs, which are not run."""
    found: Table = {}
    plain = None
    for step in sorted({"0", *steps}):
        figures, temporaries = _count(step)
        plain = plain or temporaries  # step 0 comes first
        figures["temporaries_over_plain"] = round(temporaries / plain, 3)
        if step in steps:
            found[shapes.NAMES[step]] = figures
    return found


def _count(step: str) -> tuple[Figures, int]:
    """The figures of a step, and the bytes of its temporaries."""
    import jax

    from fqs_jax.planning import traced as traced_lib
    from fqs_jax.runtime import device_memory

    kind = step_kind(step)
    arguments = jax.eval_shape(kind.arguments, jax.random.key(0))
    traced = kind.step().trace(*arguments)
    # Chunks of positions are spread evenly over a text, so each branch of a condition runs equally often.
    computed = traced_lib.matmul_flops(traced.jaxpr.jaxpr, statistics.mean)
    program = traced.lower().compile(FAST)
    lines = [line for line in program.as_text().splitlines() if " = " in line]
    figures = {
        "flops_over_minimal": round(computed / kind.flops, 4),
        "instructions": len(lines),
        "fusions": sum(" fusion(" in line for line in lines),
    }
    used = device_memory.of_program(program, "cpu")
    assert used is not None
    return figures, used.temporaries


def step_kind(step: str) -> Any:
    """The step that benchmarks/train_step.py measures."""
    from benchmarks import measure

    return measure.kind(
        shapes.SHAPES["A"],
        shapes.THOUGHTS.get(step),
        shapes.RATIONALES,
        ntp=step == "4",
        length=None,
        compute=shapes.COMPUTE,
    )


def timed() -> Table:
    """Ratios of times; each step runs in its own process with one thread."""
    from benchmarks import steps_table

    rows = {step: steps_table.measured("A", step) for step in shapes.NAMES}
    plain = rows["0"]["seconds_median"]
    return {
        shapes.NAMES[step]: {
            "ratio_to_floor": row["ratio_to_floor"],
            "ratio_to_plain": round(row["seconds_median"] / plain, 2),
        }
        for step, row in rows.items()
    }


def dearer(found: Table, table: Table, same_compiler: bool = True) -> list[str]:
    """One line for every figure that exceeds that of the table by more than its margin."""
    complaints = []
    for name, figures in found.items():
        for figure, value in figures.items():
            if figure in OF_COMPILER and not same_compiler:
                continue
            expected = table.get(name, {}).get(figure)
            if expected is None:
                complaints.append(f"{name}: the table has no {figure}; see --update")
            elif value > expected * (1 + MARGINS[figure]):
                complaints.append(f"{name}: {figure} is {value}, was {expected}")
    return complaints


if __name__ == "__main__":
    define_flags()
    app.run(main)
