"""Break small inputs at random and read them: `python -m benchmarks.fuzz --target=data --minutes=30`.

Targets are the import of checkpoints, GGUF files, tokenizers, and texts. Every input must be read, or refused
with a UserError of one line. Anything else is a fault and is kept in --out with its exception:

    exception   another exception, or a message of several lines
    crash       the process died
    hang        20 seconds on one input
    memory      2 GiB more than before
    code        a module was imported because the input names it
    wrong       the input was taken, but numbers or token ids are out of range

A worker process reads; this process watches it, and starts another one after a crash or a hang. Inputs
are drawn with hypothesis from the seed. The last line is a JSON object with all counts; exit code 1 if
there was any fault.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from benchmarks import fuzz_changes, fuzz_inputs

FLAGS = flags.FLAGS
SECONDS, GIB = 20.0, 2.0  # more than any of these small inputs may take
BATCH = 200  # inputs between two seeds


def define_flags() -> None:
    flags.DEFINE_enum("target", "data", list(fuzz_inputs.TARGETS), "What is read.")
    flags.DEFINE_float("minutes", 30.0, "Time in all.", 0.0)
    flags.DEFINE_integer("seed", 0, "Seed of the first inputs.", 0)
    flags.DEFINE_string("out", "", "Folder for inputs that are faults; default: a temporary one.")


def main(_: list[str]) -> None:
    out = Path(FLAGS.out or tempfile.mkdtemp(prefix=f"fuzz-{FLAGS.target}-"))
    out.mkdir(parents=True, exist_ok=True)
    left, seed = 60 * FLAGS.minutes, FLAGS.seed
    counts: collections.Counter[str] = collections.Counter()
    while left > 0:
        found = watch(FLAGS.target, seed, left, out)
        left, seed = left - found.seconds, found.seed + 1
        counts += found.counts
    faults = sum(n for name, n in counts.items() if name not in ("read", "refused"))
    summary = {"target": FLAGS.target, "inputs": sum(counts.values()), **counts, "faults": faults}
    print(json.dumps(summary | {"out": str(out)} if faults else summary), flush=True)
    sys.exit(bool(faults))


class Found(NamedTuple):
    """The findings of a worker.

    Attributes:
      seed: the last seed that it used.
      seconds: the time that it read inputs, without its start.
      counts: how many inputs ended in which way.
    """

    seed: int
    seconds: float
    counts: collections.Counter[str]


def watch(target: str, seed: int, seconds: float, out: Path) -> Found:
    """Run one worker until it dies, hangs, or has read inputs for so long."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / f"{fuzz_changes.PAYLOAD}.py").write_text("Payload = str\n")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([os.getcwd(), folder]),
            "XDG_CACHE_HOME": str(place / "cache"),
        }
        command = [sys.executable, "-c", "from benchmarks import fuzz; fuzz.work()"]
        with (place / "stderr").open("w") as log:
            worker = subprocess.Popen(
                [*command, target, str(seed), folder, str(out)], env=environment, stderr=log
            )
        state, began, ended = place / "state.json", 0.0, ""
        while not ended and not (began and time.monotonic() - began > seconds):
            time.sleep(0.2)
            if worker.poll() is not None:
                ended = "crash"
            elif state.exists():
                began = began or time.monotonic()
                if time.time() - state.stat().st_mtime > SECONDS:
                    ended = "hang"
        worker.kill()
        worker.wait()
        if not state.exists():
            raise RuntimeError(
                f"the worker did not start:\n{(place / 'stderr').read_text()[-3000:]}"
            )
        found = json.loads(state.read_text())
        counts = collections.Counter(found["counts"])
        if ended:
            counts[ended] += 1
            keep(out, place / "input", ended, (place / "stderr").read_text()[-3000:])
    return Found(found["seed"], time.monotonic() - began, counts)


def work() -> None:
    """The worker: read broken inputs, one after the other, and note after each how it ended."""
    import hypothesis
    from hypothesis import strategies as st

    from fqs_jax.data.sources import table_check

    # One process checks the tables of all inputs: starting it takes longer than most inputs.
    child = table_check.Child()
    table_check.Child = functools.partial(contextlib.nullcontext, child)  # type: ignore[assignment, misc]
    target, first, folder, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    targets = fuzz_inputs.TARGETS[target]
    whole = [folder / f"whole-{i}" / "it" for i in range(len(targets))]
    for path, one in zip(whole, targets, strict=True):
        path.parent.mkdir()
        one.make(path)
        one.read(path)  # imports and compiles everything, and shows that the input is valid
    names = [sorted(str(p.relative_to(w)) for p in w.rglob("*") if p.is_file()) for w in whole]
    choices = [(i, name) for i, group in enumerate(names) for name in group]
    counts: collections.Counter[str] = collections.Counter()
    seed = first

    def note() -> None:
        state = folder / "state.json.tmp"
        state.write_text(json.dumps({"seed": seed, "counts": counts}))
        state.replace(folder / "state.json")

    def attempt(choice: tuple[int, str], changes: list[fuzz_changes.Change]) -> None:
        which, name = choice
        shutil.rmtree(folder / "input", ignore_errors=True)
        path = folder / "input" / "it"
        shutil.copytree(whole[which], path)
        data = (path / name).read_bytes()
        for change in changes:
            data = fuzz_changes.apply(data, change)
        (path / name).write_bytes(data)
        note()
        ended, reason = outcome(targets[which], path)
        counts[ended] += 1
        if ended not in ("read", "refused"):
            keep(out, folder / "input", ended, f"{name}\n{changes}\n{reason}")
        note()

    while True:
        settings = hypothesis.settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        drawn = hypothesis.given(st.sampled_from(choices), fuzz_changes.changes())(attempt)
        hypothesis.seed(seed)(settings(drawn))()
        seed += 1


def outcome(target: fuzz_inputs.Target, path: Path) -> tuple[str, str]:
    """The end of the reading of an input, and its reason."""
    from fqs_jax.runtime.errors import UserError

    before = _peak_gib()
    ended, reason = "read", ""
    try:
        target.read(path)
    except UserError as error:
        ended = "refused" if len(str(error).splitlines()) == 1 else "exception"
        reason = str(error)
    except AssertionError:
        ended, reason = "wrong", traceback.format_exc()
    except BaseException:  # panics of libraries are no Exception
        ended, reason = "exception", traceback.format_exc()
    if fuzz_changes.PAYLOAD in sys.modules:
        del sys.modules[fuzz_changes.PAYLOAD]
        ended, reason = "code", "the payload was imported"
    if _peak_gib() - before > GIB:
        ended = "memory"
    return ended, reason


def keep(out: Path, made: Path, ended: str, reason: str) -> None:
    """Keep an input that is a fault, with the reason."""
    place = Path(tempfile.mkdtemp(prefix=f"{ended}-", dir=out))
    shutil.copytree(made, place, dirs_exist_ok=True)
    (place / "reason.txt").write_text(reason, encoding="utf-8", errors="backslashreplace")
    lines = reason.strip().splitlines() or [""]
    print(f"{ended}: {place}: {lines[-1][:200]!a}", flush=True)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    define_flags()
    app.run(main)
