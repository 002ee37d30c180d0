"""Time of a product of few rows by the layout of its kernel: `python -m benchmarks.products`.

One thread on a CPU, medians of rounds by turns. Each call multiplies by one of several kernels, which
together do not fit into a core's cache, as the layers of a model do not. Prints a JSON line for each kernel
and number of rows: milliseconds with the inputs first, [I, O], and with the outputs first, [O, I], as
`fqs_jax/model/dense.py` reads them.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
KERNELS = ((576, 1536), (1536, 576))  # inputs, outputs: the feed-forward layers of SmolLM2-135M
ROWS = (1, 4, 8, 16)
COPIES = 12  # of each kernel


def define_flags() -> None:
    flags.DEFINE_integer("rounds", 9, "Rounds, in which the two layouts take turns.", 1)


def main(_: list[str]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for (inputs, outputs), rows in itertools.product(KERNELS, ROWS):
        first_inputs, first_outputs = measure(inputs, outputs, rows, FLAGS.rounds)
        result = {
            "inputs": inputs,
            "outputs": outputs,
            "rows": rows,
            "inputs_first_ms": round(first_inputs, 3),
            "outputs_first_ms": round(first_outputs, 3),
        }
        print(json.dumps(result), flush=True)


def measure(inputs: int, outputs: int, rows: int, rounds: int) -> tuple[float, float]:
    """Median milliseconds of a product with the kernel [inputs, outputs] and with [outputs, inputs]."""
    import jax
    import jax.numpy as jnp

    from fqs_jax.model import dense

    x_RxI = jnp.ones((rows, inputs), jnp.float32)
    layouts: list[tuple[Callable[..., Any], list[jax.Array]]] = [
        (jax.jit(jnp.matmul), [jnp.full((inputs, outputs), 0.01) for _ in range(COPIES)]),
        (jax.jit(dense.product), [jnp.full((outputs, inputs), 0.01) for _ in range(COPIES)]),
    ]
    for multiply, kernels in layouts:
        jax.block_until_ready(multiply(x_RxI, kernels[0]))  # compiles
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for taken, (multiply, kernels) in zip(seconds, layouts, strict=True):
            started = time.perf_counter()
            jax.block_until_ready([multiply(x_RxI, kernel) for kernel in kernels])
            taken.append((time.perf_counter() - started) / COPIES)
    by_inputs, by_outputs = (1000 * statistics.median(taken) for taken in seconds)
    return by_inputs, by_outputs


if __name__ == "__main__":
    define_flags()
    app.run(main)
