"""Programs started by a program: order, failures, logs, signals."""

import signal
import subprocess
import sys

import pytest

from fqs_jax.runtime.interrupts import Interrupted
from fqs_jax.sweeps import children


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_where_one_fails_the_others_go_on(tmp_path):
    logs = [tmp_path / f"{i}.txt" for i in range(3)]
    logs[1].write_text("an earlier run\n")
    told = []
    ends = children.run(
        [
            python("print('one')"),
            python("import sys; print('two'); sys.exit('three\\n\\n')"),
            python(""),
        ],
        logs,
        on_begin=told.append,
        on_end=lambda i, end: told.append((i, end.code)),
    )
    assert [(end.code, end.last_line) for end in ends] == [
        (0, "one"),
        (1, "three"),
        (0, "it printed nothing"),
    ]
    assert told == [0, (0, 0), 1, (1, 1), 2, (2, 0)]
    assert logs[1].read_text() == "an earlier run\ntwo\nthree\n\n\n"


def test_an_exception_is_not_hidden_by_what_jax_says_of_it(tmp_path):
    lost = "import jax; jax.jit(lambda x: {}['lost'])(1)"
    later = f"try:\n    {lost}\nexcept KeyError:\n    raise ValueError('later')"
    logs = [tmp_path / "lost.txt", tmp_path / "later.txt"]
    ends = children.run([python(lost), python(later)], logs)
    last = ["KeyError: 'lost'", "ValueError: later"]
    assert [(end.code, end.last_line) for end in ends] == [(1, line) for line in last]
    assert all("For simplicity, JAX" in log.read_text() for log in logs)


def test_jobs_run_at_once(tmp_path):
    """Each waits for a file that the other one makes."""
    wait = (
        "import pathlib, time; pathlib.Path({!r}).touch()\n"
        "while not pathlib.Path({!r}).exists(): time.sleep(0.02)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    ends = children.run([python(wait.format(a, b)), python(wait.format(b, a))], jobs=2)
    assert [end.code for end in ends] == [0, 0]


def test_a_program_that_was_killed_has_its_signal():
    [end] = children.run([python("import os; os.kill(os.getpid(), 9)")])
    assert end.code == -9


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_and_nothing_begins_after(tmp_path, signum):
    """The program sends us the signal, and ends when it has got it back."""
    code = (
        "import os, pathlib, signal, sys\n"
        "def got(*_): pathlib.Path(sys.argv[1]).touch(); sys.exit(0)\n"
        f"signal.signal({int(signum)}, got)\n"
        f"os.kill(os.getppid(), {int(signum)})\n"
        "while True: signal.pause()"
    )
    before = signal.getsignal(signum)
    begun = []
    with pytest.raises(Interrupted, match="run the same command again to resume") as stop:
        children.run(
            [[*python(code), str(tmp_path / "got")], python("")],
            [tmp_path / "log", None],
            1,
            begun.append,
        )
    assert stop.value.signum == signum and (tmp_path / "got").exists() and begun == [0]
    assert signal.getsignal(signum) == before


def test_none_is_left_behind(monkeypatch):
    started, original = [], subprocess.Popen

    def popen(*arguments, **named):
        started.append(original(*arguments, **named))
        return started[-1]

    def begin(i: int) -> None:
        if i == 1:
            raise RuntimeError

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(RuntimeError):
        children.run([python("import time; time.sleep(100)"), python("")], jobs=2, on_begin=begin)
    assert [process.returncode for process in started] == [-signal.SIGTERM]
