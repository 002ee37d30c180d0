"""Stopping on request: Ctrl-C and SIGTERM set a flag that long work polls between steps."""

from __future__ import annotations

import os
import signal
import types
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Raised where work stops on request, after its state is saved; `str` says how to go on."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Interrupts:
    """While active, the first signal sets `signum`; a second one raises KeyboardInterrupt at once.

    Use as a context manager from the main thread; it turns that KeyboardInterrupt into Interrupted.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if kind is KeyboardInterrupt and self.signum is not None:
            raise Interrupted("stopped without saving; the last checkpoint stands", self.signum)

    def _handle(self, signum: int, _: types.FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        name = signal.Signals(signum).name
        note = f"\n{name}: finishing the step and saving; once more stops without saving\n"
        os.write(2, note.encode())  # print is not safe here: the signal may have come inside one

    def check(self, message: str) -> None:
        """Raise Interrupted with the message if a signal came."""
        if self.signum is not None:
            raise Interrupted(message, self.signum)
