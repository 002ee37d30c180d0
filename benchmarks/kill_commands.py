"""Kill the programs that write results, and run them again: `python -m benchmarks.kill_commands --kills=20`.

A tiny run is trained once. Then `evaluate`, `convert`, `prepare` and `report` are each run undisturbed,
and killed at random moments, half of them in the last fifth of a run, where results are written. After
every kill, files that existed before are what they were or whole new ones. The same command is then
run again: its results must be those of the undisturbed run, and no other file may be left. Times are not
compared. Exit code 0 if all are identical, else 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.kill_resume import ENVIRONMENT, TIMEOUT

FLAGS = flags.FLAGS
TRAIN = (
    "--config=configs/tiny.py",
    "--stage=all",
    "--config.batch_size=8",
    "--config.model.num_layers=1",
    "--max_steps=4",
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program and its flags; {W} is the working directory, {OUT} a folder that does not exist yet."""

    name: str
    arguments: tuple[str, ...]

    def command(self, place: Path) -> list[str]:
        """The command line for the files in a folder."""
        names = {"W": place / "W", "OUT": place / "out"}
        filled = [argument.format(**names) for argument in self.arguments]
        return [sys.executable, "-m", f"fqs_jax.{self.name}", *filled]


PROGRAMS = (
    Program("evaluate", ("--workdir={W}", "--all_stages")),
    Program("report", ("--workdir={W}",)),
    Program("convert", ("--workdir={W}", "--stage=3", "--export={OUT}", "--max_shard_gb=1e-5")),
    Program("prepare", ("--text={W}/text.jsonl", "--out={OUT}", "--name=corpus")),
)


def define_flags() -> None:
    flags.DEFINE_integer("kills", 20, "Number of kills of each program.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of the random moments.")


def main(_: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chance, failures = random.Random(FLAGS.seed), 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ |= ENVIRONMENT | {
            "JAX_COMPILATION_CACHE_DIR": f"{place}/cache",
            "XDG_CACHE_HOME": f"{place}/cache",
        }
        train(place / "whole")
        for program in PROGRAMS:
            problems = []
            expected, seconds = undisturbed(program, place)
            for number in range(FLAGS.kills):
                latest = number % 2 * 0.8  # of a run
                moment = seconds * chance.uniform(latest, 1.0)
                if problem := problem_of_kill(program, place, moment, expected):
                    problems.append(f"killed after {moment:.2f} s: {problem}")
            line = {"program": program.name, "seconds": round(seconds, 2), "kills": FLAGS.kills}
            print(json.dumps(line | {"problems": problems}), flush=True)
            failures += len(problems)
    sys.exit(bool(failures))


def train(place: Path) -> None:
    """A finished run with an evaluation, whose times the report then shows, and a text beside its stages."""
    command = [sys.executable, "-m", "fqs_jax.launch", *TRAIN, f"--workdir={place / 'W'}"]
    subprocess.run(command, check=True, timeout=TIMEOUT)
    subprocess.run(PROGRAMS[0].command(place), check=True, timeout=TIMEOUT)
    texts = [f"Document {number} is {'long ' * (number % 50)}." for number in range(20_000)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (place / "W" / "text.jsonl").write_text(lines)


def undisturbed(program: Program, place: Path) -> tuple[dict[str, Any], float]:
    """The files after a run that is left alone, and the seconds that it takes (of the second try)."""
    for _ in range(2):  # the first compiles
        root = copy(place)
        began = time.monotonic()
        done = run(program, root)
        seconds = time.monotonic() - began
        if done.returncode:
            sys.exit(f"FAILED: {program.name}: {done.stderr[-2000:]}")
    return contents(root), seconds


def problem_of_kill(
    program: Program, place: Path, moment: float, expected: Mapping[str, Any]
) -> str:
    """Kill a program and run it again; the first problem, "" if there is none.

    Args:
      moment: seconds after its start.
      expected: the files after a run that is left alone.
    """
    root = copy(place)
    before = contents(root)
    with subprocess.Popen(
        program.command(root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.kill()
    after = contents(root)
    for name, content in after.items():
        if not _is_temporary(name) and content not in (before.get(name), expected.get(name)):
            return f"{name} is neither the old nor the new one"
    if missing := before.keys() - after.keys():
        return f"{min(missing)} is gone"
    written = expected.keys() <= after.keys() and all(after[n] == expected[n] for n in expected)
    done = run(program, root)
    if done.returncode and not (written and "exists" in done.stderr):
        return f"exit code {done.returncode} of the next run: {done.stderr[-500:]}"
    return _difference(contents(root), expected)


def run(program: Program, root: Path) -> subprocess.CompletedProcess[str]:
    """A run that is left alone."""
    command = program.command(root)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)


def copy(place: Path) -> Path:
    """A fresh copy of the finished run; an earlier one is removed."""
    root = place / "tried"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(place / "whole", root)
    return root


def contents(root: Path) -> dict[str, Any]:
    """The content of every file below a folder, by name; times are left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(root))] = _without_times(path)
    return found


def _without_times(path: Path) -> Any:
    data = path.read_bytes()
    if path.name == "evaluation.json":
        with contextlib.suppress(ValueError, KeyError, TypeError):
            content = json.loads(data)
            for row in content["rows"]:
                del row["ms_per_token"]
            return content
    if path.suffix == ".png":  # a plot of times
        return "whole" if data.endswith(b"IEND\xaeB`\x82") else "torn"
    return data


def _is_temporary(name: str) -> bool:
    """True for a file that only a running program uses."""
    return any(part.startswith(".") or part.endswith(".tmp") for part in Path(name).parts)


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    if found.keys() != expected.keys():
        return f"other files: {sorted(found.keys() ^ expected.keys())[:3]}"
    return next((f"{name} differs" for name in expected if found[name] != expected[name]), "")


if __name__ == "__main__":
    define_flags()
    app.run(main)
