"""A process of its own for work that may crash, take all memory or never end, such as that of a library.

The process runs a script that reads one JSON value a line and writes one JSON value for each. It is
started at the first question, by a fresh interpreter, because a process in which JAX has threads must not
be forked. It ends when its standard input does, so also when this process is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from fqs_jax.runtime.errors import UserError


class Ended(Exception):
    """The process ended, or was killed, before it answered.

    Attributes:
      code: its exit code, or minus the number of a signal; None if it was killed because it took too long.
    """

    def __init__(self, code: int | None):
        super().__init__(f"ended with {code}")
        self.code = code


class ChildProcess:
    """A process that answers questions, one at a time; started again after it ended.

    It may be used from several threads. A forked process starts a child of its own.

    Args:
      script: returns the file of the script.
      environment: variables besides those of this process.
      seconds: the longest time to wait for an answer; None = for ever.
    """

    def __init__(
        self,
        script: Callable[[], str],
        environment: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ):
        self._script, self._seconds = script, seconds
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that started it
        self._lock = threading.Lock()

    def ask(self, question: Any) -> Any:
        """The answer to a question; both are JSON values.

        Raises:
          Ended: there is none.
          UserError: the process cannot be started, or cannot import what it needs.
        """
        with self._lock:
            if (
                self._owner != os.getpid()
                or self._process is None
                or self._process.poll() is not None
            ):
                self._start()
            assert self._process is not None
            answer = self._exchange(json.dumps(question).encode() + b"\n")
            if answer is not None and answer.endswith(b"\n"):
                return json.loads(answer)
            process, self._process = self._process, None
            ended = _stop(process)
            code = None if answer is None else ended
        if code == 1:
            name = os.path.basename(self._script())
            raise UserError(f"the process that runs {name} cannot run ({sys.executable})")
        raise Ended(code)

    def close(self) -> None:
        """End the process, if it runs; nothing is lost."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                _stop(self._process)
            self._process = None

    def _start(self) -> None:
        # -P: nothing is imported from the current folder, nor from the one of the script.
        command = [sys.executable, "-P", self._script()]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | self._environment,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the child
            )
        except OSError as error:
            raise UserError(f"cannot start {sys.executable}: {error.strerror or error}") from error
        if self._owner != os.getpid():
            atexit.register(self.close)
        self._owner = os.getpid()

    def _exchange(self, question: bytes) -> bytes | None:
        """The line that answers; what there is of it if the process ends, and None if it takes too long."""
        assert self._process is not None
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):  # a crash shows as no answer
            self._process.stdin.write(question)
            self._process.stdin.flush()
        end = None if self._seconds is None else time.monotonic() + self._seconds
        parts: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not (parts and parts[-1].endswith(b"\n")):
                left = None if end is None else max(end - time.monotonic(), 0.0)
                if not selector.select(left):
                    return None
                part = os.read(self._process.stdout.fileno(), 1 << 20)
                if not part:
                    break
                parts.append(part)
        return b"".join(parts)


def _stop(process: subprocess.Popen[bytes]) -> int | None:
    """End a process and return its exit code; None if it had to be killed."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):  # it has crashed
        process.stdin.close()
    process.stdout.close()
    try:
        return process.wait(1)  # one that works on nothing ends at once
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
