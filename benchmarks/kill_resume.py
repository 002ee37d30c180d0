"""Compare a run that is killed many times with one that is not, bit for bit.

python -m benchmarks.kill_resume --kills=50
python -m benchmarks.kill_resume --kills=20 --bucket=gs://BUCKET/NAME

One run of all stages is not disturbed. Then the same run is killed at random moments, also while it
starts, compiles, saves and scores, and resumed with the same command. If a run ends before all kills
are used, it is compared and another one starts. With --bucket the killed runs are in a bucket, and the
undisturbed one on this machine. Exit code 0 if all are identical, else 1.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
# Stages of configs/tiny.py, each long enough for some kills, with many saves.
RUN = (
    "--config=configs/tiny.py",
    "--stage=all",
    "--config.batch_size=8",
    "--config.model.num_layers=1",
    "--config.checkpoint_every=10",
    "--config.log_every=1",
    *(f"--config.stage_{n}.steps={s}" for n, s in enumerate((300, 60, 100, 60))),
    "--max_steps=300",
)
# Programs run only briefly, so they are not optimised. Each run has its own cache, so that it compiles too;
# one in a bucket has it there by itself.
ENVIRONMENT = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
SIGNALS = {
    "KILL": (signal.SIGKILL,),
    "TERM": (signal.SIGTERM,),
    "mixed": (signal.SIGKILL, signal.SIGTERM),
}
_UNFINISHED = "orbax-checkpoint-tmp"  # in the name of a folder that is being saved
TIMEOUT = 300.0  # seconds, for a process that should end within a few


class Failed(Exception):
    """A run neither finished nor stopped on its signal; the message describes it."""


def define_flags() -> None:
    flags.DEFINE_integer("kills", 50, "Number of kills in all.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of the random moments.")
    flags.DEFINE_string("workdir", "", "New folder to keep the runs in; empty = a temporary one.")
    flags.DEFINE_string("bucket", "", "Place in a bucket for the killed runs; empty = --workdir.")
    flags.DEFINE_enum("signal", "KILL", list(SIGNALS), "Signals that are sent.")


def main(_: list[str]) -> None:
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that the run ends too
    with contextlib.ExitStack() as stack:
        place = Path(FLAGS.workdir or stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            runs = Runs(place, FLAGS.bucket)
            report = measure(runs, FLAGS.kills, random.Random(FLAGS.seed), SIGNALS[FLAGS.signal])
        except Failed as failure:
            sys.exit(f"FAILED: {failure}")
    report.print()
    sys.exit(any(report.differences))


@dataclasses.dataclass(frozen=True)
class Runs:
    """The place of runs.

    Attributes:
      folder: on this machine, for what they print, and for those that are not in a bucket.
      bucket: for the killed ones; "" = the same folder.
    """

    folder: Path
    bucket: str

    def named(self, name: str, bucket: bool = True) -> Run:
        """The run of this name."""
        from fqs_jax.runtime import paths

        home = f"{self.bucket}/{name}" if bucket and self.bucket else self.folder / name
        return Run(self.folder / name, paths.expand(home) / "W")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, with a folder of this machine for what it prints, and its working directory."""

    folder: Path
    workdir: Path


@dataclasses.dataclass
class Report:
    """Result of the comparison.

    Attributes:
      whole: seconds of the undisturbed run.
      start: seconds of the longest start of a stage in it, everything before its first step.
      lives: seconds of every process of the killed runs.
      moments: number of kills by what the process was doing.
      differences: one for each killed run, empty if it is identical.
    """

    whole: float
    start: float
    lives: list[float] = dataclasses.field(default_factory=list)
    moments: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    differences: list[str] = dataclasses.field(default_factory=list)

    def print(self) -> None:
        from rich.console import Console
        from rich.table import Table

        kills, runs = sum(self.moments.values()), len(self.differences)
        lost = sum(self.lives) - runs * self.whole
        table = Table(title="Killed and resumed", show_header=False)
        table.add_row("kills survived", f"{kills} in {runs} run(s)")
        for moment, count in self.moments.most_common():
            table.add_row(f"  {moment}", str(count))
        worst = next(filter(None, self.differences), "")
        table.add_row("bit-identical", f"no: {worst}" if worst else "yes")
        each = f", {lost / kills:.1f} a kill" if kills else ""
        table.add_row("seconds lost", f"{lost:.0f}{each}")
        table.add_row("seconds of an undisturbed run", f"{self.whole:.0f}")
        Console().print(table)


def measure(
    runs: Runs, kills: int, chance: random.Random, signals: tuple[signal.Signals, ...]
) -> Report:
    """Kill runs `kills` times in all, and compare each with an undisturbed one."""
    import jax

    from fqs_jax.runtime import files

    jax.config.update("jax_platforms", "cpu")  # for the comparison; the runs use the accelerator
    whole = runs.named("whole", bucket=False)
    if whole.folder.exists():
        raise Failed(f"{whole.folder} exists already; give another --workdir")
    print("one undisturbed run ...", flush=True)
    seconds = live(whole)
    report = Report(seconds, longest_start(whole.workdir, seconds))
    print(f"done in {seconds:.0f} s; a stage starts in up to {report.start:.0f} s", flush=True)
    while not report.differences or sum(report.moments.values()) < kills:
        killed = runs.named(f"killed_{len(report.differences) + 1}")
        was_killed = True
        while was_killed:
            left = kills - sum(report.moments.values())
            was_killed = left > 0 and kill_once(killed, report, chance, signals)
        if left == 0:
            report.lives.append(live(killed))
        report.differences.append(first_difference(whole.workdir, killed.workdir))
        name = killed.folder.name
        print(f"{name}: {report.differences[-1] or 'identical'}", flush=True)
        if report.differences[-1] or sum(report.moments.values()) >= kills:
            break  # the last one stays, to be looked at
        files.remove_tree(killed.workdir)
    return report


def kill_once(
    run: Run, report: Report, chance: random.Random, signals: tuple[signal.Signals, ...]
) -> bool:
    """Start the run and kill it at a random moment; False if it ended before that."""
    # Twice the time of a start, so that half of the kills hit a start and half hit steps.
    moment, signum = chance.uniform(0, 2 * report.start), chance.choice(signals)
    began = time.time()
    with started(run) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.send_signal(signum)  # no effect if it has ended
        process.wait(TIMEOUT)
    report.lives.append(time.time() - began)
    # Before a program handles SIGTERM, the signal kills it.
    if process.returncode not in (0, -signum, 128 + signum):
        raise Failed(f"exit code {process.returncode} of a process of {run}:\n{last_output(run)}")
    killed = process.returncode != 0
    if killed:
        moment_name = name_moment(run.workdir, began)
        report.moments[moment_name] += 1
        count = sum(report.moments.values())
        print(f"kill {count}: {signum.name} after {moment:.1f} s, {moment_name}", flush=True)
    return killed


def live(run: Run) -> float:
    """Resume a run and wait for its end; returns the seconds that it took."""
    began = time.time()
    with started(run) as process:
        process.wait(10 * TIMEOUT)
        if process.returncode:
            raise Failed(
                f"exit code {process.returncode} of a process of {run}:\n{last_output(run)}"
            )
    return time.time() - began


@contextlib.contextmanager
def started(run: Run) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the run, which has ended afterwards."""
    from fqs_jax.runtime import paths

    run.folder.mkdir(parents=True, exist_ok=True)
    cache = "" if paths.is_bucket(run.workdir) else str(run.folder / "cache")
    environment = os.environ | ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": cache}
    command = [sys.executable, "-m", "fqs_jax.launch", *RUN, f"--workdir={run.workdir}"]
    with (run.folder / "stderr").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def last_output(run: Run) -> str:
    """The last output of a process of the run."""
    return (run.folder / "stderr").read_text()[-2000:]


def longest_start(root: Path, seconds: float) -> float:
    """Seconds of the longest start of a stage: compiling and everything else before its first step."""
    rows = [
        json.loads(line)
        for path in root.glob("stage_*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    steps = sum(row["time"]["step_seconds"] for row in rows if "event" not in row)
    compiling = [row["time"]["compile_seconds"] for row in rows if row.get("event") == "start"]
    return max(compiling) + max(0.0, seconds - steps - sum(compiling)) / len(compiling)


def name_moment(root: Path, began: float) -> str:
    """The activity in which a process that began then was killed, as far as its files show."""
    from fqs_jax.runtime import paths

    changed = _changed(root)
    new = {name: moment for name, moment in changed.items() if moment > began}
    saves = {
        match[0] for name in new if (match := re.search(r"stage_\d+/checkpoints/[^/]+/", name))
    }
    whole = {name for name in saves if f"{name}commit_success.txt" in changed}
    if saves - whole if paths.is_bucket(root) else any(_UNFINISHED in name for name in saves):
        return "in a save"
    stages = [name for name in new if name.startswith("stage_")]
    if not stages:
        return "in starting up"
    newest = max(stages, key=new.__getitem__).partition("/")[0]
    if any(name.startswith(f"{newest}/metrics.jsonl") for name in new):
        return "in compiling or in a step"
    if any(name.startswith(f"{newest}/teacher") for name in new):
        return "in teacher scoring"
    return "in starting a stage"


def _changed(root: Path) -> dict[str, float]:
    """The times of the last changes of all files in a folder, by name relative to it."""
    from fqs_jax.runtime import buckets, paths

    if paths.is_bucket(root):
        return {name: info["mtime"].timestamp() for name, info in buckets.objects(root).items()}
    return {str(path.relative_to(root)): path.stat().st_mtime for path in root.rglob("*")}


# Comparing two runs --------------------


def first_difference(root: Path, other: Path) -> str:
    """The first difference between two working directories; empty if they are identical to the bit."""
    from fqs_jax.runs import folders

    numbers = [stage.number for stage in folders.existing_stages(root)]
    if numbers != [stage.number for stage in folders.existing_stages(other)]:
        return "the stages that exist"
    found = (f"stage {n}: {d}" for n in numbers if (d := stage_difference(root, other, n)))
    return next(found, "")


def stage_difference(root: Path, other: Path, number: int) -> str:
    """The first difference in a stage that both have; empty if there is none.

    Rows of metrics, teacher scores, restored parameters and optimizer states, their fingerprints, and
    thoughts drawn by thinking models are compared.
    """
    comparisons = (_metrics, _teacher_scores, _states, _thoughts)
    return next(filter(None, (compare(root, other, number) for compare in comparisons)), "")


def _metrics(root: Path, other: Path, number: int) -> str:
    rows, others = (_rows(r / f"stage_{number}" / "metrics.jsonl") for r in (root, other))
    steps = [row["step"] for row in rows], [row["step"] for row in others]
    if steps[0] != steps[1]:
        return "the steps that have a row of metrics"
    both = zip(rows, others, strict=True)
    return next((f"metrics of step {row['step']}" for row, other in both if row != other), "")


def _rows(path: Path) -> list[dict[str, Any]]:
    """Metric rows, without events and times. A torn line is an error here."""
    from fqs_jax.runs import metrics_parts

    parts = metrics_parts.read(path) if path.is_dir() else [path.read_bytes()]
    rows = [json.loads(line) for line in b"".join(parts).splitlines()]
    return [
        {key: value for key, value in row.items() if key != "time"}
        for row in rows
        if "event" not in row
    ]


def _teacher_scores(root: Path, other: Path, number: int) -> str:
    from fqs_jax.runtime import files

    pieces, others = (
        {
            path.name: path.read_bytes()
            for path in files.entries(r / f"stage_{number}" / "teacher")
            if path.name.endswith(".npy")
        }
        for r in (root, other)
    )
    if pieces.keys() != others.keys():
        return "the pieces of teacher scores that exist"
    return next((f"teacher scores {name}" for name in pieces if pieces[name] != others[name]), "")


def _states(root: Path, other: Path, number: int) -> str:
    import numpy as np

    from fqs_jax.runs import damage

    (step, state), (other_step, other_state) = (final_state(r, number) for r in (root, other))
    if step != other_step:
        return f"the last step, {step} and {other_step}"
    for (name, a), (_, b) in zip(
        damage.by_path(state).items(), damage.by_path(other_state).items(), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
            return f"the numbers of {name}"
    if damage.describe(state) != damage.describe(other_state):
        return "fingerprints"
    return ""


def final_state(root: Path, number: int) -> tuple[int, Any]:
    """The newest step of a stage and its (parameters, optimizer state), on one device."""
    from fqs_jax.curriculum import resolve
    from fqs_jax.runs import checkpoints, folders, source
    from fqs_jax.runtime import sharding
    from fqs_jax.training import step as step_lib

    stage, config = folders.read_run(root, number)
    model = source.read_model(folders.local_source(root), config)
    wanted = step_lib.program(resolve.recipe(config, stage, model), sharding.single_device()).state
    folder = folders.checkpoint_folder(root, number)
    newest = folders.latest_step(folder)
    assert newest is not None  # the stage is one of existing_stages
    with checkpoints.Checkpoints(folder) as saved:
        params, optimizer, _ = saved.restore(newest, *wanted)
    return newest, (params, optimizer)


def _thoughts(root: Path, other: Path, number: int) -> str:
    import numpy as np

    drawn, others = (_draw(r, number) for r in (root, other))
    return "" if np.array_equal(drawn, others) else "thoughts drawn with the same key"


def _draw(root: Path, number: int) -> Any:
    """Thoughts of a stage's model for a fixed text and key; empty if it does not think."""
    import jax
    import numpy as np

    from fqs_jax.runs import loading
    from fqs_jax.thinking import thoughts
    from fqs_jax.thinking.config import Thinker

    loaded = loading.load(str(root), str(number), as_trained=True)
    if loaded.thought is None:
        return np.zeros(0)
    tokens = np.arange(64, dtype=np.int32).reshape(4, 16) % loaded.model.vocab_size
    draw = functools.partial(
        thoughts.sample_thoughts, thinker=Thinker(loaded.model, loaded.thought)
    )
    with jax.set_mesh(loaded.mesh):
        return np.asarray(jax.jit(draw)(loaded.params, tokens, jax.random.key(0))[0])


if __name__ == "__main__":
    define_flags()
    app.run(main)
