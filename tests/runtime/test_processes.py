"""Who belongs to a run of several processes, and what is said when somebody does not come."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from jax._src import clusters

from fqs_jax.runtime import processes as processes_lib
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.roll_call import Cluster, roll_call
from tests.conftest import REPO
from tests.programs import free_port

PROGRAM = """
import json, os, signal, sys
import jax
import numpy as np
from jax.experimental import multihost_utils
from fqs_jax.runtime import cli, processes
from fqs_jax.runtime.errors import UserError

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)

def main(_):
    everyone = multihost_utils.process_allgather(np.int32(jax.process_index()))
    print(json.dumps([jax.process_count(), jax.device_count(), everyone.tolist()]))
    if jax.process_index() == FAILS:
        os.kill(os.getpid(), signal.SIGTERM)  # as of a batch system that ends the rest
        raise UserError("full disk")

cli.run(main, processes.define_flags)
"""
ENVIRONMENTS = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JAX_COORDINATOR")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(ENVIRONMENTS):
            monkeypatch.delenv(name)


def start(*arguments: str, fails: int = -1) -> subprocess.Popen[str]:
    program = PROGRAM.replace("FAILS", str(fails))
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=REPO,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def members(count: int, *ids: int, port: int | None = None) -> list[Cluster]:
    where = f"127.0.0.1:{port or free_port()}"
    return [Cluster(where, count, i) for i in ids]


def call(clusters: list[Cluster], timeout: float) -> list[str]:
    """The answer to each process; empty for go."""
    told = [""] * len(clusters)

    def one(index: int) -> None:
        try:
            roll_call(clusters[index], timeout)
        except UserError as error:
            told[index] = str(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(clusters))]
    for thread in threads:
        thread.start()
        time.sleep(0.02)  # they never come at the same moment
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_come(order: tuple[int, ...]) -> None:
    assert call(members(3, *order), timeout=5) == ["", "", ""]


def test_missing_processes_are_named_to_all_who_came() -> None:
    told = call(members(4, 0, 2), timeout=0.3)
    assert told[0].startswith("2 of 4 processes came within 0.3 s, missing: 1, 3; start the same")
    assert told[1] == told[0]


def test_many_missing_processes_are_one_line() -> None:
    [told] = call(members(64, 0), timeout=0.1)
    assert "1 of 64" in told and "missing: 1, 2, 3, 4, 5, 6, 7, 8, ...;" in told


def test_missing_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fqs_jax.runtime.roll_call._PATIENCE", 0.1)
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    [cluster] = members(2, 1)
    [told] = call([cluster], timeout=0.2)
    assert told.startswith(f"process 0 at {cluster.coordinator} did not answer process 1 within")
    assert told.endswith("unset MEGASCALE_NUM_SLICES unless this is a multi-slice run")


def test_number_given_twice() -> None:
    told = call(members(3, 0, 1, 1), timeout=5)
    assert told == ["two processes came as number 1: give each its own --process_id"] * 3


def test_counts_that_differ() -> None:
    port = free_port()
    told = call(members(3, 0, port=port) + members(2, 1, port=port), timeout=5)
    assert told[0].startswith("process 1 was started for 2 processes and process 0 for 3")
    assert told[1] == told[0]


def test_a_restarted_process_takes_its_own_place_and_strangers_none() -> None:
    clusters = members(3, 0, 1, 2)
    told: list[list[str]] = []
    hold = threading.Thread(target=lambda: told.append(call(clusters[:1], timeout=5)))
    hold.start()
    for words in (b"fqs_jax 1 3 n1", b"GET / HTTP/1.1\r\n\r\n", b""):
        with connected(clusters[0].port) as line:
            line.sendall(words)
    assert call(clusters[1:], timeout=5) == ["", ""]
    hold.join()
    assert told == [[""]]


def connected(port: int) -> socket.socket:
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.02)
    raise AssertionError("nobody listens")


def test_taken_port() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        [told] = call(members(2, 0, port=port), timeout=0.2)
    assert told.startswith(f"process 0 cannot listen on port {port} (")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_processes": 2}, "give --coordinator, --num_processes and --process_id together"),
        ({"coordinator": "h:1"}, "give --coordinator, --num_processes and --process_id together"),
        (
            {"coordinator": "h", "num_processes": 2, "process_id": 0},
            "--coordinator=h is not HOST:PORT",
        ),
        (
            {"coordinator": "h:1", "num_processes": 2, "process_id": 2},
            "process 2 is one too many: 2 processes are numbered 0 to 1",
        ),
        (
            {"expected": 4},
            r"this run has 1 process \(no cluster was found here\), expected were 4",
        ),
        (
            {"expected": 4, "coordinator": "h:1", "num_processes": 2, "process_id": 1},
            r"this run has 2 processes \(--num_processes\), expected were 4: start it on every host",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        processes_lib.initialize(**arguments)  # type: ignore[arg-type]


def test_a_single_process_waits_for_nobody() -> None:
    processes_lib.initialize(expected=1)
    processes_lib.initialize(1, coordinator="nowhere:1", num_processes=1, process_id=0)
    assert processes_lib.is_main()


def slurm(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    variables = {
        "JOB_ID": 7,
        "STEP_NODELIST": "n[01-02]",
        "NTASKS": tasks,
        "PROCID": tasks - 1,
        "LOCALID": 0,
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def test_slurm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, tasks=2)
    with pytest.raises(UserError, match=r"2 processes \(as the cluster says\), expected were 16"):
        processes_lib.initialize(expected=16)
    [found] = [processes_lib._find(None, None, None, None, timeout=1)]
    assert found == Cluster("n01:61447", 2, 1, local_device_ids=(0,))


def test_a_single_slurm_task_keeps_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, tasks=1)
    processes_lib.initialize(expected=1)


def test_a_jax_that_detects_no_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single process goes on with a note; several are refused, unless their flags say it all."""
    slurm(monkeypatch, tasks=2)
    monkeypatch.delattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params")
    with pytest.raises(UserError, match=r"JAX \d.* has moved its detection.*give --coordinator"):
        processes_lib.initialize(expected=2)
    assert capsys.readouterr().err == ""
    processes_lib.initialize()
    note = capsys.readouterr().err
    assert note.startswith("note: this is a single process; JAX ") and note.count("\n") == 1
    assert processes_lib._find(None, "a:1", 2, 1, timeout=1) == Cluster("a:1", 2, 1)


def test_two_processes() -> None:
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--expect_processes=2"]
    started = [start(*flags, f"--process_id={i}", fails=1) for i in (0, 1)]
    (results, noise), (silence, said) = [process.communicate(timeout=180) for process in started]
    assert [json.loads(line) for line in results.splitlines()] == [[2, 4, [0, 1]]], noise
    assert silence == ""  # only process 0 prints, and Gloo nowhere
    assert said.startswith("\nSIGTERM: ") and said.endswith("\nerror: full disk\n")
    where = f"process 1 on {socket.gethostname()}"
    assert noise == f"error: {where} stopped with an error: see its line\n"
    assert [process.returncode for process in started] == [2, 2]  # not 143, nor that of an abort


def test_doors_say_it_in_a_sentence() -> None:
    where = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--process_id=0"]
    processes = [
        start(*where, "--expect_processes=4"),
        start(*where, "--processes_timeout=0.3"),
    ]
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert errors[0].startswith("error: this run has 2 processes")
    assert errors[1].startswith("error: 1 of 2 processes came within 0.3 s, missing: 1;")
    assert all(error.count("\n") == 1 for error in errors)
