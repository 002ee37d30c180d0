"""Processes for work that may crash or never end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fqs_jax.runtime.child_process import ChildProcess, Ended
from fqs_jax.runtime.errors import UserError
from tests.conftest import REPO

# Answers with its own number and the question; does what the question says.
SCRIPT = """
import json, os, sys, time
for line in sys.stdin:
    question = json.loads(line)
    if question == "crash":
        os.kill(os.getpid(), 11)
    if question == "raise":
        raise ValueError
    if question == "wait":
        time.sleep(600)
    print(json.dumps([os.getpid(), question]), flush=True)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


@pytest.fixture
def child(script):
    made = ChildProcess(lambda: script, seconds=30)
    yield made
    made.close()


def test_one_process_answers_many_questions_and_is_started_again(child):
    number, echo = child.ask({"a": ["\u00e9\ud83d", None]})
    assert echo == {"a": ["\u00e9\ud83d", None]}
    large = "x" * (1 << 22)
    assert child.ask(large) == [number, large]
    with pytest.raises(Ended) as ended:
        child.ask("crash")
    assert ended.value.code == -signal.SIGSEGV
    assert child.ask(1)[0] != number
    with pytest.raises(UserError, match=r"the process that runs script.py cannot run"):
        child.ask("raise")
    child.close()
    assert child.ask(2)[1] == 2


def test_threads_take_turns(child):
    found = []
    threads = [
        threading.Thread(target=lambda i=i: found.append((i, child.ask(i)[1]))) for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(i, i) for i in range(20)]


def test_what_takes_too_long_is_killed(script):
    child = ChildProcess(lambda: script, seconds=0.2)
    with pytest.raises(Ended) as ended:
        child.ask("wait")
    assert ended.value.code is None


def test_it_ends_with_a_program_that_is_killed(script):
    code = (
        "from fqs_jax.runtime.child_process import ChildProcess\nimport time\n"
        f"print(ChildProcess(lambda: {script!r}).ask(0)[0], flush=True)\ntime.sleep(600)"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPO
    )
    assert program.stdout is not None
    number = int(program.stdout.readline())
    os.kill(number, 0)  # it is there
    program.kill()
    program.wait()
    program.stdout.close()
    for _ in range(600):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the child still runs")
