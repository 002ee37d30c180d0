"""Programs of the package that get a signal, or are watched, at an exact moment.

A child process wraps one function of the program and then runs the program as `python -m` would. No test
depends on timing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests import preloaded
from tests.conftest import ONE_DEVICE, REPO

_DRIVER = "from tests.programs import main; main()"
_TIMEOUT = 300.0  # seconds in which every program here is at its end


@dataclasses.dataclass(frozen=True)
class Moment:
    """Just before, or just after, a call of a function.

    Attributes:
      function: "module:name", or "module:Class.name".
      call: which of the calls that count, from 1.
      argument: only calls count whose last path-like argument matches this pattern.
      caller: only calls count that come from a function of this name.
    """

    function: str
    call: int = 1
    argument: str = ""
    caller: str = ""
    after: bool = False


@dataclasses.dataclass(frozen=True)
class Orders:
    """Actions of a program besides its own work.

    Attributes:
      moment: the moment at which it sends itself a signal; None = never.
      signum: that signal.
      reads: file that gets a line for every batch that it reads, for `read_batches`.
      program: its name, as in `python -m fqs_jax.launch`.
    """

    moment: Moment | None = None
    signum: int = signal.SIGKILL
    reads: str = ""
    program: str = "launch"


def start(
    orders: Orders, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A program under orders; its standard output and error are pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, *_command(orders, arguments)],
        cwd=REPO,
        env=os.environ | ONE_DEVICE | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """Wait for processes: their exit codes, as in a shell, and standard errors."""
    with ended(*processes):
        errors = [process.communicate(timeout=_TIMEOUT)[1] for process in processes]
    codes = [process.returncode for process in processes]
    return [(c if c >= 0 else 128 - c, e) for c, e in zip(codes, errors, strict=True)]


def run(orders: Orders, *arguments: str) -> tuple[int, str]:
    """Run a program under orders in a forked process, without imports: see `finish`."""
    environment = os.environ | ONE_DEVICE
    if not preloaded.serves(environment):
        return finish(start(orders, *arguments))[0]
    command = _command(orders, arguments)
    code, _, said = preloaded.run("tests.programs", command, REPO, environment)
    return code if code >= 0 else 128 - code, said


def _command(orders: Orders, arguments: Sequence[str]) -> list[str]:
    return [json.dumps(dataclasses.asdict(orders)), *arguments]


@contextlib.contextmanager
def ended(*processes: subprocess.Popen[str]) -> Iterator[None]:
    """The processes have ended afterwards, whatever happened."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port() -> int:
    """A free port outside the range that `create_server` with port 0 and outgoing connections use."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


def read_batches(path: Path) -> set[tuple[int, int, str]]:
    """The rows that a program with `Orders.reads` read: (step, row of the batch, digest of its tokens)."""
    lines = map(json.loads, path.read_text().splitlines())
    return {
        (line["step"], int(row), digest) for line in lines for row, digest in line["rows"].items()
    }


def main() -> None:
    """The child process. Its command line is the orders and then that of the program."""
    orders = json.loads(sys.argv.pop(1))
    if orders["moment"]:
        _wrap(Moment(**orders["moment"]), lambda: os.kill(os.getpid(), orders["signum"]))
    if orders["reads"]:
        _watch_reads(Path(orders["reads"]))
    runpy.run_module(f"fqs_jax.{orders['program']}", run_name="__main__", alter_sys=True)


def _wrap(moment: Moment, act: Callable[[], object]) -> None:
    owner, name = _find(moment.function)
    original = getattr(owner, name)
    calls = 0

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        counts = _counts(moment, arguments, sys._getframe(1).f_code.co_name)
        calls += counts
        now = counts and calls == moment.call
        if now and not moment.after:
            act()
        result = original(*arguments, **named)
        if now and moment.after:
            act()
        return result

    setattr(owner, name, wrapper)


def _counts(moment: Moment, arguments: tuple[Any, ...], caller: str) -> bool:
    if moment.caller and moment.caller != caller:
        return False
    paths = [str(a) for a in arguments if isinstance(a, str | os.PathLike)]
    return not moment.argument or bool(paths and re.search(moment.argument, paths[-1]))


def _watch_reads(path: Path) -> None:
    owner, name = _find("fqs_jax.data.rows.order:Dataset.batch")
    original = getattr(owner, name)
    file = path.open("a", buffering=1)

    def batch(dataset: Any, step: int, rows: Any = None) -> Any:
        result = original(dataset, step, rows)
        if sys._getframe(1).f_code.co_name == "run_stage":  # looks at one row of every stage
            return result
        numbers = range(dataset.batch_size) if rows is None else map(int, rows)
        digests = [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in result["tokens"]]
        line = {"step": step, "rows": dict(zip(numbers, digests, strict=True))}
        file.write(json.dumps(line) + "\n")
        return result

    setattr(owner, name, batch)


def _find(function: str) -> tuple[Any, str]:
    """The object that has the function as an attribute, and the name of the attribute."""
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    return owner, name


if __name__ == "__main__":
    main()
