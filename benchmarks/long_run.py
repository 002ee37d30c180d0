"""Test that a long run does not slow down or grow: `python -m benchmarks.long_run`.

Trains a small thinking stage of the built-in default with the training loop itself, its metrics and its
checkpoints, in a temporary folder. Prints a JSON line for every fifth of the run and a summary, and
exits with 1 if

    steps           the median step of the last fifth is more than a tenth above that of the first
    memory          resident memory of the last fifth is more than 32 MiB above that of the second
    arrays          more arrays exist at the end than after the first fifth

On a CPU, which other programs may use too, a step counts as slower only if its CPU time grew as well.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags, logging

FLAGS = flags.FLAGS
SLOWER, GROWN_MIB = 1.10, 32.0
WINDOWS = 5


@dataclasses.dataclass
class Moment:
    """The state after a step: clocks in seconds, resident memory in MiB, number of arrays in JAX."""

    wall: float
    cpu: float
    rss: float
    arrays: int


@dataclasses.dataclass(frozen=True)
class Window:
    """Medians over some steps."""

    first: int
    last: int
    step_seconds: float
    step_cpu_seconds: float
    rss_mib: float
    arrays: float


def define_flags() -> None:
    flags.DEFINE_integer("steps", 1000, "Training steps.", 50)
    flags.DEFINE_integer("checkpoints", 20, "Checkpoints in all.", 1)


def main(_: list[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    moments = watch(FLAGS.steps, FLAGS.checkpoints)
    found = windows(moments, WINDOWS)
    for window in found:
        print(json.dumps(dataclasses.asdict(window)), flush=True)
    complaints = problems(found, own_clock=jax.default_backend() == "cpu")
    summary = {
        "steps": FLAGS.steps,
        "checkpoints": FLAGS.checkpoints,
        "step_seconds_last_over_first": round(found[-1].step_seconds / found[0].step_seconds, 3),
        "cpu_seconds_last_over_first": round(
            found[-1].step_cpu_seconds / found[0].step_cpu_seconds, 3
        ),
        "rss_growth_mib": round(found[-1].rss_mib - found[1].rss_mib, 1),
        "array_growth": found[-1].arrays - found[0].arrays,
        "problems": complaints,
    }
    print(json.dumps(summary), flush=True)
    sys.exit(bool(complaints))


def watch(steps: int, checkpoints: int) -> list[Moment]:
    """Train for some steps; the state after each step but the last."""
    import jax

    from configs import tiny
    from fqs_jax.curriculum import resolve, stage
    from fqs_jax.runs import source
    from fqs_jax.runtime import compiled_programs, sharding
    from fqs_jax.runtime.interrupts import Interrupts, Requests
    from fqs_jax.training import loop, start

    logging.set_verbosity(logging.ERROR)  # Orbax logs every save
    compiled_programs.keep()
    config = tiny.without_rows()
    config.stage_0 = stage.row(
        "think", "quiet_star", n_ahead=6, n_ahead_talk=2, learning_rate=1e-3, steps=steps
    )
    config.batch_size, config.model.num_layers = 8, 1
    config.checkpoint_every = steps // checkpoints
    moments: list[Moment] = []

    class Watching(Interrupts):
        """Interrupts that record a moment when the loop polls them, after each step."""

        def requests_of_last_step(self, save: bool = False) -> Requests:
            now = time.perf_counter(), time.process_time()
            moments.append(Moment(*now, rss_mib(), len(jax.live_arrays())))
            return super().requests_of_last_step(save)

    with tempfile.TemporaryDirectory() as folder, Watching() as interrupts:
        root = Path(folder)
        model, tokenizer = source.prepare(root, config)
        mesh = sharding.make_mesh(config.mesh)
        run = start.Run(root, config, tokenizer, mesh, interrupts, str)
        loop.run_stage(run, resolve.recipes(config, model)[0])
    return moments


def windows(moments: list[Moment], count: int) -> list[Window]:
    """The steps in `count` equal parts, in order."""
    size = len(moments) // count
    found = []
    for first in range(0, size * count, size):
        part = moments[first : first + size]
        pairs = list(zip(part, part[1:], strict=False))
        found.append(
            Window(
                first + 1,
                first + size,
                round(statistics.median(after.wall - before.wall for before, after in pairs), 6),
                round(statistics.median(after.cpu - before.cpu for before, after in pairs), 6),
                round(statistics.median(moment.rss for moment in part), 2),
                statistics.median(moment.arrays for moment in part),
            )
        )
    return found


def problems(found: list[Window], own_clock: bool) -> list[str]:
    """Quantities that grew; empty if none did.

    Args:
      found: windows in order.
      own_clock: True if steps run on this process's CPU clock.
    """
    first, second, last = found[0], found[1], found[-1]
    slower = last.step_seconds / first.step_seconds
    if own_clock:
        slower = min(slower, last.step_cpu_seconds / first.step_cpu_seconds)
    named = {
        f"a step takes {slower:.2f} times as long": slower > SLOWER,
        f"{last.rss_mib - second.rss_mib:.0f} MiB more": last.rss_mib - second.rss_mib > GROWN_MIB,
        f"{last.arrays - first.arrays:.0f} arrays more": last.arrays > first.arrays,
    }
    return [name for name, holds in named.items() if holds]


def rss_mib() -> float:
    """Resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    define_flags()
    app.run(main)
