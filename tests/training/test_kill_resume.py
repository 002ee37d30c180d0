"""Runs that are killed at chosen moments and started again end like one that is not, to the bit."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest

from benchmarks import kill_resume
from fqs_jax.runs import folders as folders_lib
from fqs_jax.runs.metrics_file import read_rows
from tests import programs
from tests.programs import Moment, Orders
from tests.tiny_runs import hf_folder, run, write_text

pytestmark = pytest.mark.slow

CONFIG = """
from tests.tiny_runs import clock_config

def get_config():
    return clock_config({
        "init_from": "PLACE/model",
        "data.source": "text",
        "data.text": "PLACE/text.jsonl",
        "thought.start_text": "---",
        "thought.end_text": "---",
        "checkpoint_every": 3,
        "keep_checkpoints": 1,
        "stage_0.steps": 16,
        "stage_3.steps": 34,  # five pieces of teacher scores
    })
"""
STEP = "jax.stages:Compiled.__call__"
SAVED = r"/checkpoints/\d+$"
COPIED = "the tokenizer is copied"
WRITTEN = "a save is written, not renamed"

# What is going on when a process is stopped; the next one goes on from what that left. What is on
# disk changes for good by a renaming, nearly always.
MOMENTS = {
    COPIED: Moment("fqs_jax.huggingface:carry", after=True),
    "the initial model is imported": Moment("fqs_jax.huggingface.reading:_place", call=5),
    "the step is compiled": Moment("jax.stages:Lowered.compile"),
    "a step is made, and has no row yet": Moment(STEP, call=5, after=True),
    WRITTEN: Moment("os:rename", argument=f"stage_0{SAVED}"),
    "the metrics are trimmed": Moment("os:replace", argument="stage_0/metrics.jsonl$"),
    "a stage is over": Moment("fqs_jax.training.loop:run_stage", call=2),
    "the next one is made ready": Moment("fqs_jax.training.start:starting_state", after=True),
    "a thinking step is made": Moment(STEP, call=5, after=True),
    "an old checkpoint is deleted": Moment("os:rename", argument="/deleted_", after=True),
    "a save has begun": Moment("fqs_jax.runs.checkpoints:Checkpoints.save", after=True),
    "a save is whole": Moment("os:rename", argument=f"stage_2{SAVED}", after=True),
    "between pieces of teacher scores": Moment(
        "fqs_jax.training.teacher_scores:_read_piece", call=2
    ),
    "inside a piece": Moment("fqs_jax.data.rows.order:Dataset.batch", call=3, caller="score_batch"),
    "a piece is written, not renamed": Moment("os:replace", argument=r"batches_\d+_\d+.npy$"),
    "a step with teacher scores is made": Moment(STEP, call=5, after=True),
}
# No process is asked to stop at these, only killed: it would do what it does at other moments.
KILLED_ONLY = {
    "the step is compiled",
    "a step is made, and has no row yet",
    WRITTEN,
    "a save has begun",
    "inside a piece",
    "the metrics are trimmed",
    "a stage is over",
    "the next one is made ready",
    "an old checkpoint is deleted",
    "a save is whole",
    "a piece is written, not renamed",
    "a step with teacher scores is made",
}
# No process is killed at these, only asked to stop: what is on disk is as at other moments.
ASKED_ONLY = {
    "the initial model is imported",
    "a thinking step is made",
    "between pieces of teacher scores",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("kill")
    hf_folder(place / "model")
    write_text(place / "text.jsonl")
    (place / "config.py").write_text(CONFIG.replace("PLACE", str(place)))
    return place


@pytest.fixture(scope="module")
def whole(place):
    """A run that is left alone."""
    run("launch", *command(place, "whole"))
    return place / "whole"


def command(place, name):
    return f"--config={place / 'config.py'}", f"--workdir={place / name}"


def saved(root):
    """The progress of a run: the newest step of each stage, and the number of pieces of teacher scores."""
    folders = [root / f"stage_{number}" / "checkpoints" for number in range(4)]
    steps = [folders_lib.latest_step(folder) or 0 for folder in folders]
    return [*steps, len(list(root.glob("stage_3/teacher/*.npy")))]


def stop(moment, signum, arguments, environment=None):
    """A process stopped at its moment: what it said."""
    orders = Orders(moment, signum)
    if environment is None:
        code, said = programs.run(orders, *arguments)
    else:
        [(code, said)] = programs.finish(
            programs.start(orders, *arguments, environment=environment)
        )
    assert code == 128 + signum, f"exit {code} and not {128 + signum}, {moment}\n{said}"
    for noise in ("Traceback", "Warning", "damaged"):
        assert noise not in said
    return said


def test_a_killed_run_ends_like_one_that_is_left_alone(place, whole):
    root, arguments = place / "killed", command(place, "killed")
    for name in [name for name in MOMENTS if name not in ASKED_ONLY]:
        before = saved(root)
        stop(MOMENTS[name], signal.SIGKILL, arguments)
        assert saved(root) >= before, name
        if name == WRITTEN:  # and so there are rows to trim next
            assert read_rows(root / "stage_0" / "metrics.jsonl")[-1]["step"] > saved(root)[0]
    run("launch", *arguments)
    assert kill_resume.first_difference(whole, root) == ""


@pytest.mark.exhaustive
def test_a_run_that_is_asked_to_stop_ends_like_one_that_is_left_alone(place, whole):
    root, arguments = place / "asked", command(place, "asked")
    for name in [name for name in MOMENTS if name not in KILLED_ONLY]:
        before = saved(root)
        said = stop(MOMENTS[name], signal.SIGTERM, arguments)
        if name == COPIED:  # there is nothing to save yet, and it dies like any program
            continue
        assert "run the same command again to resume" in said, name
        # Before a stage's first step there is nothing new to save.
        assert saved(root) > before or " is at step " in said, name
    run("launch", *arguments)
    assert kill_resume.first_difference(whole, root) == ""


@pytest.mark.exhaustive
def test_what_was_cut_in_the_compilation_cache_is_compiled_anew(place, whole, tmp_path):
    """JAX writes its entries in place, so a kill may leave a part of one."""
    arguments = (*command(place, "cut"), "--stage=0")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    stop(Moment(STEP, call=5, after=True), signal.SIGKILL, arguments, cache)
    entries = list((tmp_path / "cache").glob("*-cache"))
    assert any("train_step" in entry.name for entry in entries)
    for entry in entries:
        os.truncate(entry, entry.stat().st_size // 2)
    [(code, said)] = programs.finish(programs.start(Orders(), *arguments, environment=cache))
    assert code == 0 and "Traceback" not in said, said
    assert kill_resume.stage_difference(whole, place / "cut", 0) == ""


def test_what_differs_is_found(whole, tmp_path, monkeypatch):
    """The comparison that the others rely on."""
    other = shutil.copytree(whole, tmp_path / "W")

    def difference():
        return kill_resume.stage_difference(whole, other, 3)

    assert difference() == ""

    def one_bit_off(root, number):
        step, state = final_state(root, number)
        leaves, structure = jax.tree.flatten(state)
        if root == other:
            numbers = bytearray(np.asarray(leaves[-1]).tobytes())
            numbers[0] ^= 1
            leaves[-1] = np.frombuffer(numbers, leaves[-1].dtype).reshape(leaves[-1].shape)
        return step, jax.tree.unflatten(structure, leaves)

    final_state = kill_resume.final_state
    monkeypatch.setattr(kill_resume, "final_state", one_bit_off)
    assert difference().startswith("the numbers of 1/")

    piece = min((other / "stage_3" / "teacher").glob("*.npy"))
    numbers = bytearray(piece.read_bytes())
    numbers[-1] ^= 1
    piece.write_bytes(numbers)
    assert difference() == f"teacher scores {piece.name}"

    metrics = other / "stage_3" / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text.replace('"step": 7, "', '"step": 7, "skipped": 0, "'))
    assert difference() == "metrics of step 7"
    lines = text.splitlines(keepends=True)
    assert '"end"' in lines[-1]  # that of a stage is no row
    for changed in (lines[:5] + lines[4:], lines[:5] + lines[6:], lines[:-2] + lines[-1:]):
        metrics.write_text("".join(changed))
        assert difference() == "the steps that have a row of metrics"
    shutil.rmtree(other / "stage_3")
    assert kill_resume.first_difference(whole, other) == "the stages that exist"
