"""Programs started by a program: several at once, logs, and signals handed on to them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import subprocess
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fqs_jax.runtime.interrupts import SIGNALS, Interrupted

_PAUSE = 0.1  # seconds between looks at what runs
_JAX_NOTE = re.compile(r"\n-+\nFor simplicity, JAX .*\s*\Z")  # hides an exception above it


@dataclasses.dataclass(frozen=True)
class End:
    """How a program ended: its code (below 0: the signal), its log's last line, how long it ran."""

    code: int
    last_line: str
    seconds: float


@dataclasses.dataclass
class _Child:
    index: int
    process: subprocess.Popen[bytes]
    log: Path | None
    log_start: int
    begun: float = dataclasses.field(default_factory=time.monotonic)
    told: int = 0  # signals handed on to it


def run(
    commands: Sequence[Sequence[str]],
    logs: Sequence[Path | None] | None = None,
    jobs: int = 1,
    on_begin: Callable[[int], None] = lambda _: None,
    on_end: Callable[[int, End], None] = lambda *_: None,
) -> list[End]:
    """Run programs, `jobs` of them at once, in the order given; where one fails the others go on.

    Ctrl-C and SIGTERM are handed on to those that run, as often as they come, and none is begun after.

    Args:
      logs: where each one's output is added; None = where our own goes.
      on_begin, on_end: told the index of a program, and how it ended.

    Raises:
      Interrupted: a signal came, and all that ran have ended.
    """
    waiting = [*zip(commands, logs or [None] * len(commands), strict=True)][::-1]
    running: list[_Child] = []
    ends: dict[int, End] = {}
    with _signals() as came, _ended(running):
        while running or (waiting and not came):
            while waiting and len(running) < jobs and not came:
                index = len(commands) - len(waiting)
                on_begin(index)
                running.append(_start(index, *waiting.pop()))
            for child in running.copy():
                for signum in came[child.told :]:
                    child.process.send_signal(signum)
                    child.told += 1
                if child.process.poll() is not None:
                    running.remove(child)
                    ends[child.index] = _end(child)
                    if not came:
                        on_end(child.index, ends[child.index])
            time.sleep(_PAUSE)
    if came:
        raise Interrupted("stopped; the same command goes on", came[0])
    return [ends[index] for index in range(len(commands))]


def _start(index: int, command: Sequence[str], log: Path | None) -> _Child:
    # In a group of its own: a terminal sends Ctrl-C to the whole group, and we hand it on as well.
    if log is None:
        return _Child(index, subprocess.Popen(command, process_group=0), None, 0)
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0
        )
        return _Child(index, process, log, file.tell())


def _end(child: _Child) -> End:
    last = ""
    if child.log is not None:
        with child.log.open("rb") as file:
            file.seek(child.log_start)
            written = _JAX_NOTE.sub("", file.read().decode(errors="replace")).strip().splitlines()
        last = written[-1] if written else "it said nothing"
    return End(child.process.returncode, last, time.monotonic() - child.begun)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came, while it is active."""
    came: list[int] = []

    def handle(signum: int, _: types.FrameType | None) -> None:
        came.append(signum)

    before: dict[int, Any] = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _ended(running: list[_Child]) -> Iterator[None]:
    """None is left behind, whatever happened."""
    try:
        yield
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.wait()
