"""Whether a training step has become dearer: `python -m benchmarks.gate [--timed] [--update]`.

Compares figures with the table of benchmarks/gate.json, prints a JSON line a step, and exits with 1 if one
is above its own by more than a margin. All are ratios of shape A's steps (benchmarks/train_step.py):

    flops_over_minimal      FLOPs of the traced program over the least that do (fqs_jax/thinking/flops.py)
    temporaries_over_plain  bytes the compiled program allocates, over the plain step's on the same rows
    instructions, fusions   in the compiled program
    ratio_to_floor          seconds over what the minimal FLOPs take at the rate of a matrix product
    ratio_to_plain          seconds over the plain step's on the same rows

The first are counted, the same on every machine; those of compiled programs are compared if JAX is of the
table's version. The last two need --timed, a quiet machine and minutes. --update writes the table.
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
# How much above the table's a figure may be.
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
# Machine code that nobody runs; what is counted is decided before it is made.
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
        # Times of the table stay where none were measured.
        steps = {name: table["steps"].get(name, {}) | figures for name, figures in found.items()}
        TABLE.write_text(json.dumps({"jax": jax.__version__, "steps": steps}, indent=2) + "\n")
        return
    complaints = dearer(found, table["steps"], same_compiler=table["jax"] == jax.__version__)
    print("\n".join(complaints) or "nothing is dearer than the table says", flush=True)
    sys.exit(bool(complaints))


def counted(steps: tuple[str, ...] = tuple(shapes.NAMES)) -> Table:
    """Figures of traced and compiled programs, of which none runs."""
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
    """A step's figures, and bytes of its temporaries."""
    import jax

    from fqs_jax.planning import traced as traced_lib

    kind = step_kind(step)
    arguments = jax.eval_shape(kind.arguments, jax.random.key(0))
    traced = kind.step().trace(*arguments)
    # Chunks of positions lie evenly over a text, and with them the branches that they take.
    computed = traced_lib.matmul_flops(traced.jaxpr.jaxpr, statistics.mean)
    program = traced.lower().compile(FAST)
    lines = [line for line in program.as_text().splitlines() if " = " in line]
    figures = {
        "flops_over_minimal": round(computed / kind.flops, 4),
        "instructions": len(lines),
        "fusions": sum(" fusion(" in line for line in lines),
    }
    return figures, traced_lib.memory(program, "cpu").temporaries


def step_kind(step: str) -> Any:
    """What benchmarks/train_step.py measures."""
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
    """Ratios of times, each step in a process of its own with one thread."""
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
    """One line for every figure that is above the table's by more than its margin."""
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
