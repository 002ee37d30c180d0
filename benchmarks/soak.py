"""Test that nothing leaks: `python -m benchmarks.soak --hours=2`.

In one process, for hours: train every stage of the tiny default with many saves, compare the stages,
write the report, export every stage, load and use the exports, remove it all. Prints a JSON line for
every round and a summary, and exits with 1 if

    memory      resident memory of the last fifth of the rounds is more than 32 MiB above that of the
                second fifth
    files       more open files, or more files in the temporary and the cache folder
    threads     more threads
    processes   child processes that did not end

after the last round than after the first fifth. All rounds share the programs that JAX compiles in the
first one: every compilation keeps some memory in XLA for good, which would hide a leak of ours. The
number of Python objects is printed, to tell a leak of ours from one of a library.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from benchmarks.long_run import GROWN_MIB, WINDOWS, rss_mib

FLAGS = flags.FLAGS
STEPS, SAVE_EVERY = 20, 5  # of every stage


@dataclasses.dataclass(frozen=True)
class State:
    """The state of the process after a round."""

    seconds: float
    rss_mib: float
    open_files: int
    threads: int
    processes: int
    files: int
    objects: int


def define_flags() -> None:
    flags.DEFINE_float("hours", 2.0, "Time in all.", 0.0)


def main(_: list[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as place:
        # Everything that the rounds write is below this folder, so that what is left can be counted.
        os.environ |= {"TMPDIR": place, "XDG_CACHE_HOME": f"{place}/cache"}
        tempfile.tempdir = None
        states = rounds(Path(place), FLAGS.hours * 3600)
    complaints = problems(states)
    summary = {
        "rounds": len(states),
        "hours": round(sum(state.seconds for state in states) / 3600, 2),
        "rss_growth_mib": round(growth(states), 1),
        "problems": complaints,
    }
    print(json.dumps(summary), flush=True)
    sys.exit(bool(complaints))


def rounds(place: Path, seconds: float) -> list[State]:
    """Rounds until the time is over, and as many as `problems` needs; the state after each."""
    from fqs_jax.training import step

    step.program = _made_once(step.program)
    logging.set_verbosity(logging.ERROR)  # Orbax logs every save
    end = time.monotonic() + seconds
    states: list[State] = []
    while time.monotonic() < end or len(states) < 2 * WINDOWS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            one_round(Path(folder))
        gc.collect()
        states.append(state(time.monotonic() - began, place))
        print(json.dumps(dataclasses.asdict(states[-1])), flush=True)
    return states


def _made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of steps that gives the same step for equal recipes."""
    made: dict[str, Any] = {}

    def program(recipe: Any, mesh: Any, extra_keys: tuple[str, ...] = ()) -> Any:
        key = repr((recipe, mesh, extra_keys))
        if key not in made:
            made[key] = make(recipe, mesh, extra_keys)
        return made[key]

    return program


def one_round(folder: Path) -> None:
    """Train, compare, report, export, load and use every stage once."""
    from configs import tiny
    from fqs_jax import huggingface
    from fqs_jax.curriculum import resolve
    from fqs_jax.evaluation import comparison, comparison_file
    from fqs_jax.inference import generation
    from fqs_jax.reporting import collect, page
    from fqs_jax.runs import loading, source
    from fqs_jax.runtime import sharding
    from fqs_jax.runtime.interrupts import Interrupts
    from fqs_jax.training import loop, start

    root, config = folder / "W", tiny.get_config()
    config.batch_size, config.model.num_layers = 8, 1
    config.data.num_documents, config.checkpoint_every = 300, SAVE_EVERY
    model, tokenizer = source.prepare(root, config)
    recipes = resolve.recipes(config, model, STEPS)
    with Interrupts() as interrupts:
        mesh = sharding.make_mesh(config.mesh)
        run = start.Run(root, config, tokenizer, mesh, interrupts, str)
        for recipe in recipes:
            loop.run_stage(run, recipe)
    rows = comparison.compare(root, 1)
    comparison_file.write(root, rows, comparison_file.PROBLEMS, {})
    (root / "report.html").write_text(page.page(collect.collect(root, collect.Settings())))
    for recipe in recipes:
        loaded = loading.load(str(root), str(recipe.stage.number), as_trained=True)
        out = folder / f"export-{recipe.stage.number}"
        thought = loaded.params.get("thought")
        settings = dataclasses.asdict(loaded.thought) if loaded.thought else None
        huggingface.export(
            loaded.params["lm"],
            loaded.model,
            out,
            loaded.source,
            thought=thought,
            thought_settings=settings,
        )
        generation.generate(loading.load(str(out)), ["5 +1 +3 = "], max_new_tokens=4)


def state(seconds: float, place: Path) -> State:
    """The state of this process now."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return State(
        seconds=round(seconds, 2),
        rss_mib=round(rss_mib(), 1),
        open_files=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        processes=len(children),
        files=sum(path.is_file() for path in place.rglob("*")),
        objects=len(gc.get_objects()),
    )


def growth(states: list[State]) -> float:
    """Resident memory of the last fifth of the rounds above that of the second fifth, in MiB."""
    size = len(states) // WINDOWS
    second, last = states[size : 2 * size], states[-size:]
    rss = [statistics.median(state.rss_mib for state in part) for part in (second, last)]
    return rss[1] - rss[0]


def problems(states: list[State]) -> list[str]:
    """Quantities that grew; empty if none did."""
    first, last = states[len(states) // WINDOWS - 1], states[-1]
    named = {
        f"{growth(states):.0f} MiB more": growth(states) > GROWN_MIB,
        f"{last.open_files - first.open_files} open files more": last.open_files > first.open_files,
        f"{last.threads - first.threads} threads more": last.threads > first.threads,
        f"{last.processes} child processes": last.processes > 0,
        f"{last.files - first.files} files more": last.files > first.files,
    }
    return [name for name, holds in named.items() if holds]


if __name__ == "__main__":
    define_flags()
    app.run(main)
