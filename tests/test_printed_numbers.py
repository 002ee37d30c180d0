"""Numbers that README and getting started state about the built-in example, and the commands they show."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import tiny
from fqs_jax.curriculum import objective, resolve
from fqs_jax.data import corpus
from fqs_jax.evaluation import timing
from fqs_jax.runs import source
from fqs_jax.thinking import flops
from tests import printed_table
from tests.conftest import ENVIRONMENT, REPO
from tests.tiny_runs import TINY, hf_folder, run, write_text

README = (REPO / "README.md").read_text()
STARTED = (REPO / "docs" / "getting-started.md").read_text()
TABLE = printed_table.table(STARTED)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """The recipes of the built-in example, and its task; nothing is trained."""
    config = tiny.get_config()
    model, _ = source.prepare(tmp_path_factory.mktemp("numbers") / "W", config)
    return resolve.recipes(config, model), corpus.built_in_task(config.data, config.seed), config


def test_steps_and_flops_of_the_table(recipes):
    """Without training: the first problem is the context, as in `evaluate`."""
    made, task, config = recipes
    shown = [row for row in TABLE if " at " not in row["model"]]
    assert [row["model"] for row in shown] == [recipe.stage.name for recipe in made]
    prompt = task.problems("test")[0][0]
    # A token a symbol, the one that begins a text, and half of those that are timed.
    context = len(prompt.split()) + 1 + timing.TOKENS // 2
    for row, recipe in zip(shown, made, strict=True):
        assert row["steps"] == f"{recipe.stage.steps:,}"
        assert row["FLOPs/token"] == f"{flops.decode(recipe.model, context, recipe.thought):.2e}"


def test_sizes_that_are_stated(recipes):
    made, task, config = recipes
    leaves = objective.abstract_params(made[0].model, None)["lm"]
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(leaves))
    assert f"a {size / 1e3:.0f}k-parameter model" in README
    problems, answers = len(task.problems("test")), len(task.answers)
    chance = f"{problems} held-out problems; an answer by chance is right 1 time in {answers}"
    for text in (README, STARTED):
        text = " ".join(text.split())
        assert chance in text and f"1 time in {answers} = {1 / answers:.3f}" in text
        assert f"clock of {answers} hours" in text
    training = len(task.problems("train"))
    answered = math.ceil(config.data.clock.answered_share * training)
    said = f"Of the {training} training problems the text answers only {answered}."
    assert said in " ".join(README.split())
    shares = dict(re.findall(r"(\w+)=(.*)", " ".join(tiny.QUESTIONS).replace(" ", "\n")))
    assert (shares["direct"], shares["worked"]) == ("0.02", "0.1")
    assert "one in fifty is answered at once, one in ten is worked out" in " ".join(STARTED.split())


def test_a_stale_table_is_found():
    assert printed_table.stale(STARTED, STARTED, README) == []
    other_time = STARTED.replace("0.20 │", "9.99 │")
    assert printed_table.stale(STARTED, other_time, README) == []
    for old, new in (("0.923 ± 0.021", "0.922 ± 0.021"), ("7,892", "7,893"), ("1.09e+06", "1e+06")):
        assert len(printed_table.stale(STARTED, STARTED.replace(old, new), README)) == 1
    # Another type of processor: near the seeds of README, whose least for think-5-2 is 0.907.
    base = STARTED.replace("│ 5.632 │", "│ 5.633 │")
    assert printed_table.stale(STARTED, base.replace("0.923 ±", "0.858 ±"), README) == []
    assert len(printed_table.stale(STARTED, base.replace("0.923 ±", "0.856 ±"), README)) == 1
    assert printed_table.stale(STARTED, "", README) and printed_table.stale("", STARTED, README)


# The commands --------------------

# Commands of the two pages that no test here runs, and what does.
ELSEWHERE = {
    "git clone URL fqs_jax && cd fqs_jax": "a new user",
    "make demo": "tests/test_demo.py",
    "make test": "CI",
    "pip install": "tests/first_hour.sh",
    "fqs plan --config=mistral_7b": "tests/planning",
    "launch/": "tests/test_launch_scripts.py",
    "sky jobs launch": "tests/launch/test_skypilot.py",
    "fqs demo": "tests/reporting/test_live_browser.py",
}
SMALL = (
    "--max_steps=2",
    "--config.batch_size=2",
    "--config.data.num_documents=300",
    "--config.log_every=1",
)


def shown_commands(text: str) -> list[str]:
    """The commands in the indented blocks of a page, without comments."""
    lines = re.findall(r"^    (\S.*)$", text.replace("\\\n", " "), re.MULTILINE)
    return [line.partition(" # ")[0].strip() for line in lines]


def is_elsewhere(command: str) -> bool:
    return any(command.startswith(start) for start in ELSEWHERE)


def test_every_command_is_tried():
    """A new kind of command is run below, or gets a line above."""
    commands = shown_commands(README) + shown_commands(STARTED)
    left = {command.split()[0] for command in commands if not is_elsewhere(command)}
    assert left == {"fqs"}
    assert all(any(command.startswith(start) for command in commands) for start in ELSEWHERE)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("page", [README, STARTED], ids=["README", "getting-started"])
def test_the_commands_run(page, tmp_path):
    """In order, on small models; placeholders are small files."""
    folder = hf_folder(tmp_path / "HF_DIR")
    (tmp_path / "corpus").mkdir()
    write_text(tmp_path / "corpus" / "a.jsonl")
    write_text(tmp_path / "held_out.jsonl", count=20, seed=1)
    paths = {
        "HF_DIR": str(folder),
        "corpus/": f"{tmp_path}/corpus/",
        "held_out.jsonl": f"{tmp_path}/held_out.jsonl",
        "workdir/tiny": f"{tmp_path}/workdir/tiny",
        "--workdir=W": f"--workdir={tmp_path}/W",
        "--checkpoint=W": f"--checkpoint={tmp_path}/W",
        "--export=OUT": f"--export={tmp_path}/OUT",
    }
    for command in shown_commands(page):
        if is_elsewhere(command):
            continue
        for name, path in paths.items():
            command = command.replace(name, path)
        _, program, *words = shlex.split(command)
        words = [f"{tmp_path}/W" if word == "W" else word for word in words]
        if program == "launch" and "--config=small_hf" in words:
            words = [word for word in words if "max_steps" not in word] + ["--max_steps=2", *TINY]
        elif program == "launch":
            words += [f"--workdir={tmp_path}/workdir/tiny", *SMALL]
        elif program == "report" and words[-1].endswith("/W"):
            # On this page ahead of the run that it is about, which has text.
            continue
        done = run(program, *words)
        assert done.stdout, command
    assert (tmp_path / "workdir" / "tiny" / "report.html").stat().st_size > 20_000


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_hour(tmp_path):
    """Everything is installed anew, from the package index, so it is skipped without one."""
    reach = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "absl-py"]
    if subprocess.run(reach, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no package index can be reached")
    command = (REPO / "tests" / "first_hour.sh", tmp_path / "hour")
    # Not with the settings of tests, under which programs compile to other rounding.
    theirs = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run(command, env=theirs, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(done.stdout.splitlines()[-1].split()[3]).is_file()
