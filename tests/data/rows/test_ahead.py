"""Reading ahead: the same values in the same order, errors as they are, workers off the accelerator."""

import functools
import os
import subprocess
import sys
import threading
import time

import pytest

from fqs_jax.data.rows.ahead import AHEAD, THREADS, read_ahead
from fqs_jax.runtime.errors import UserError
from tests.conftest import REPO


def square(number, bad=-1):
    if number == bad:
        raise UserError(f"number {number} cannot be read")
    return number * number


def look_at_jax(number):
    from jax._src import xla_bridge

    return {
        "number": number,
        "pid": os.getpid(),
        "backends": len(xla_bridge._backends),
        "platforms": os.environ.get("JAX_PLATFORMS"),
    }


def test_all_values_in_order():
    assert list(read_ahead(square, 3, 40)) == [i * i for i in range(3, 40)]
    assert list(read_ahead(square, 3, 3)) == []


def test_reads_ahead_but_not_without_end():
    seen = []
    batches = read_ahead(lambda i: seen.append(i) or i, 0, 1000)
    next(batches)
    time.sleep(0.2)
    assert 2 <= len(seen) <= AHEAD + THREADS + 2


def test_an_error_comes_in_its_turn_and_as_itself():
    batches = read_ahead(functools.partial(square, bad=5), 3, 9)
    assert [next(batches), next(batches)] == [9, 16]
    with pytest.raises(UserError) as raised:
        next(batches)
    assert str(raised.value) == "number 5 cannot be read"


def test_leaving_early_leaves_no_threads():
    before = threading.active_count()
    for _ in range(3):
        batches = read_ahead(square, 0, 1000)
        next(batches)
        batches.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


WORKERS = """
import functools, os, signal
from fqs_jax.data.rows.ahead import read_ahead
from tests.data.rows.test_ahead import UserError, look_at_jax, square

if __name__ == "__main__":
    found = list(read_ahead(look_at_jax, 2, 8, workers=2))
    assert [value["number"] for value in found] == [2, 3, 4, 5, 6, 7], found
    assert len({value["pid"] for value in found} | {os.getpid()}) == 3, found
    assert all(value["backends"] == 0 for value in found), found
    assert all(value["platforms"] == "cpu" for value in found), found
    try:
        list(read_ahead(functools.partial(square, bad=1), 0, 4, workers=1))
    except UserError as error:
        print(error)
    unfinished = read_ahead(look_at_jax, 0, 1000, workers=1)
    worker = next(unfinished)["pid"]
    for signum in (signal.SIGINT, signal.SIGTERM):  # as a scheduler sends them to all processes
        os.kill(worker, signum)
    print([next(unfinished)["number"] for _ in range(50)][-1])
"""


@pytest.mark.slow
def test_workers_are_processes_that_never_start_jax(tmp_path):
    """The parent is told to use an accelerator that is not there: only a worker that ignores it works."""
    (tmp_path / "program.py").write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["number 1 cannot be read", "50"]
    assert done.stderr == ""  # not even from the one that was left unfinished
