"""Child processes: several at once, each with a log, and signals forwarded to them.

Why not submitit: its local executor starts all jobs at once and names logs by job id. Why process groups
and forwarding: a signal that a scheduler sends to this process alone must reach the children, and
Ctrl-C, which a terminal sends to a whole group, must not reach them twice, because the second one
stops a program before it has saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fqs_jax.runtime.interrupts import SIGNALS, Interrupted

_POLL_SECONDS = 0.1
_JAX_NOTE = re.compile(r"\n-+\nFor simplicity, JAX .*\s*\Z")  # hides the exception above it


@dataclasses.dataclass(frozen=True)
class End:
    """The end of a child.

    Attributes:
      code: exit code; below 0, the negative number of the signal that ended it.
      last_line: last line that it added to its log; "" without a log.
      seconds: wall time that it ran.
    """

    code: int
    last_line: str
    seconds: float


@dataclasses.dataclass
class _Child:
    index: int
    process: subprocess.Popen[bytes]
    log: Path | None
    log_start: int
    start_time: float
    num_forwarded: int = 0  # signals sent to it so far

    def end(self) -> End:
        last_line = ""
        if self.log is not None:
            text = self.log.read_bytes()[self.log_start :].decode(errors="replace")
            last_line = (_JAX_NOTE.sub("", text).strip().splitlines() or ["it printed nothing"])[-1]
        return End(self.process.returncode, last_line, time.monotonic() - self.start_time)


def run(
    commands: Sequence[Sequence[str]],
    logs: Sequence[Path | None] | None = None,
    jobs: int = 1,
    on_begin: Callable[[int], None] = lambda index: None,
    on_end: Callable[[int, End], None] = lambda index, end: None,
) -> list[End]:
    """Run commands, `jobs` of them at once, in the given order. If one fails, the others still run.

    Every SIGINT and SIGTERM is forwarded to the running children, and after one no other command is started.

    Args:
      logs: file that each command's output is appended to; None = it goes where our own goes.
      on_begin: called with the index of a command before it starts.
      on_end: called with the index and the end of a command; not after a signal.

    Raises:
      Interrupted: a signal arrived; all children have ended.
    """
    waiting = list(enumerate(zip(commands, logs or [None] * len(commands), strict=True)))
    running: list[_Child] = []
    received: list[int] = []
    ends: dict[int, End] = {}
    with contextlib.ExitStack() as stack:
        for signum in SIGNALS:
            previous = signal.signal(signum, lambda number, _: received.append(number))
            stack.callback(signal.signal, signum, previous)
        while running or (waiting and not received):
            while waiting and len(running) < jobs and not received:
                index, (command, log) = waiting.pop(0)
                on_begin(index)
                child = _start(index, command, log)
                running.append(child)
                # If an exception leaves it running: terminate it, then wait for it.
                stack.enter_context(child.process)
                stack.callback(child.process.terminate)
            for child in running.copy():
                for number in received[child.num_forwarded :]:
                    child.process.send_signal(number)
                    child.num_forwarded += 1
                if child.process.poll() is not None:
                    running.remove(child)
                    ends[child.index] = child.end()
                    if not received:
                        on_end(child.index, ends[child.index])
            time.sleep(_POLL_SECONDS)
    if received:
        raise Interrupted("stopped; run the same command again to resume", received[0])
    return [ends[index] for index in range(len(commands))]


def _start(index: int, command: Sequence[str], log: Path | None) -> _Child:
    with contextlib.nullcontext() if log is None else log.open("ab") as file:
        log_start = file.tell() if file else 0
        stdin = subprocess.DEVNULL if file else None
        process = subprocess.Popen(command, stdin=stdin, stdout=file, stderr=file, process_group=0)
    return _Child(index, process, log, log_start, time.monotonic())
