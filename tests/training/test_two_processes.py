"""Two processes with two devices each, which meet over the loopback, beside one with one device."""

import json
import re
import signal
import time

import numpy as np
import pytest

from fqs_jax.runs import folders, history
from fqs_jax.runs.metrics_file import read_rows
from tests import programs
from tests.programs import Moment, Orders

pytestmark = pytest.mark.slow

CONFIG = """
from tests.tiny_runs import clock_config

def get_config():
    c = clock_config({"batch_size": 4, "model.num_kv_heads": 2, "checkpoint_every": 4})
    del c.stage_2
    c.stage_3.teacher = 1
    return c
"""
STAGES = (0, 1, 3)
STEP = "jax.stages:Compiled.__call__"
DATA_AND_FSDP = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
FSDP_AND_TENSOR = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    (place / "config.py").write_text(CONFIG)
    return place


def one(place, name, moment=None, code=0):
    """A single process; its log of reads is in the folder."""
    orders = Orders(moment, signal.SIGTERM, reads=str(place / f"{name}.reads"))
    found, said = programs.finish(programs.start(orders, *command(place, name)))[0]
    assert found == code, said
    return place / name


def two(place, name, *arguments, moment=None, signum=signal.SIGTERM, then=None, second=(), code=0):
    """Two processes, the second of which may get a signal: what they said.

    second: arguments of the second process alone.
    then: is called with the second process while both are under way.
    """
    cluster = (
        f"--coordinator=127.0.0.1:{programs.free_port()}",
        "--num_processes=2",
        "--expect_processes=2",
        "--processes_timeout=60",
    )
    processes = []
    for number in range(2):
        reads = str(place / f"{name}.reads_{number}")
        orders = Orders(moment if number == 1 else None, signum, reads)
        own = (f"--process_id={number}", *(second if number == 1 else ()))
        options = (*command(place, name), *arguments, *cluster, *own)
        environment = {"JAX_NUM_CPU_DEVICES": "2"}
        processes.append(programs.start(orders, *options, environment=environment))
    with programs.ended(*processes):
        if then:
            then(processes[1])
        ends = programs.finish(*processes)
    assert [end[0] for end in ends] == [code, code], "\n".join(said for _, said in ends)
    return [said for _, said in ends]


def command(place, name):
    return f"--config={place / 'config.py'}", f"--workdir={place / name}"


@pytest.fixture(scope="module")
def alone(place):
    """The whole run in a single process with a single device."""
    return one(place, "alone")


def assert_same_rows(root, expected):
    for number in STAGES:
        rows, others = (read_rows(r / f"stage_{number}/metrics.jsonl") for r in (root, expected))
        assert [row["step"] for row in rows] == [row["step"] for row in others] == [*range(1, 7)]
        for row, other in zip(rows, others, strict=True):
            assert row.keys() == other.keys()
            # A talk head that is still 0 leaves rewards of 0, whose rounding has either sign.
            for name in row.keys() - {"time", "reward_positive"}:
                np.testing.assert_allclose(row[name], other[name], rtol=1e-5, atol=1e-5)


def devices(root, number):
    """The number of devices that each process which worked on a stage reported."""
    lines = (root / f"stage_{number}" / "metrics.jsonl").read_text().splitlines()
    return [row["devices"] for row in map(json.loads, lines) if row.get("event") == "start"]


def assert_each_read_its_half(place, name):
    """All rows were read in the same order, each by one of the processes."""
    expected = programs.read_batches(place / "alone.reads")
    halves = [programs.read_batches(place / f"{name}.reads_{number}") for number in range(2)]
    assert [sorted({row for _, row, _ in half}) for half in halves] == [[0, 1], [2, 3]]
    assert halves[0] | halves[1] <= expected
    # Both read the same steps, up to what each had read ahead when it stopped.
    steps = [sorted({step for step, _, _ in half}) for half in halves]
    assert steps[0] == steps[1]


def test_two_processes_stop_together_and_one_goes_on(place, alone):
    """The signal comes to one of them, in the middle of the second stage."""
    moment = Moment(STEP, call=8, after=True)
    said = two(place, "two_one", *DATA_AND_FSDP, moment=moment, code=128 + signal.SIGTERM)
    saved = re.search(r"stage 1 \(think-5-2\) saved at step (\d) of 6; run the same", said[0])
    assert saved and 2 <= int(saved[1]) < 6, said[0]
    assert "SIGTERM" in said[1] and "SIGTERM" not in said[0] and "saved" not in said[1]
    assert not re.search("Traceback|Warning", "".join(said))
    root = place / "two_one"
    assert folders.latest_step(root / "stage_1" / "checkpoints") == int(saved[1])
    assert_each_read_its_half(place, "two_one")
    one(place, "two_one")
    assert [devices(root, number) for number in STAGES] == [[4], [4, 1], [1]]
    assert_same_rows(root, alone)


@pytest.mark.exhaustive
def test_one_process_stops_and_two_go_on(place, alone):
    """The second process comes to the record of the command only when the first has written it."""

    def go_on_after_the_record(process):
        while process.poll() is None:  # more than once: it may not have come to its stop yet
            if (root / "commands.txt").exists():
                process.send_signal(signal.SIGCONT)
            time.sleep(0.1)

    root = place / "one_two"
    one(place, "one_two", Moment(STEP, call=3, after=True), code=128 + signal.SIGTERM)
    assert 3 <= folders.latest_step(root / "stage_0" / "checkpoints") < 6
    moment = Moment("fqs_jax.runs.history:record_command")
    said = two(
        place,
        "one_two",
        *FSDP_AND_TENSOR,
        moment=moment,
        signum=signal.SIGSTOP,
        then=go_on_after_the_record,
    )
    assert len(history.commands(root)) == 1
    assert not re.search("Traceback|Warning", "".join(said)) and said[1] == ""
    assert_each_read_its_half(place, "one_two")
    assert [devices(root, number) for number in STAGES] == [[1, 4], [4], [4]]
    assert_same_rows(root, alone)
    pieces = [sorted((r / "stage_3" / "teacher").glob("*.npy")) for r in (root, alone)]
    for piece, other in zip(*pieces, strict=True):
        assert piece.name == other.name
        scores = [np.load(path)["teacher_log_prob"] for path in (piece, other)]
        # The teacher was trained on other meshes, whose sums round differently.
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-4)


def test_what_both_are_told_wrong_is_said_once(place):
    first, second = two(place, "refused", "--config.mesh.data=3", code=2)
    expected = "error: mesh.data=3, mesh.fsdp=-1, mesh.tensor=1 do not make up 4 cpu device(s); "
    assert first.startswith(expected) and first.count("\n") == 1 and second == ""
    assert not list(place.glob("refused/stage_*"))


def test_what_they_are_told_differently_is_refused_before_anything_is_made(place):
    first, second = two(place, "differs", second=("--config.stage_3.teacher=0",), code=2)
    expected = "error: process 1 has other flags or another config than process 0: start the same "
    assert first.startswith(expected) and first.count("\n") == 1 and second == ""
    assert not (place / "differs").exists()
