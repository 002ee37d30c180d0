"""What Orbax says when something is wrong with a checkpoint, cut down to what concerns a user.

Orbax reads arrays concurrently and gives up at the first error. What the other reads run into then
comes out as tracebacks from asyncio's log, from abandoned coroutines, and from TensorStore's threads,
which find the event loop closed. All of it repeats, or follows from, the exception that is raised.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from typing import Any

_LENGTH = 200  # of a reason, in characters


def reason(error: BaseException) -> str:
    """The gist of an exception in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    # TensorStore puts the innermost cause last, and an error code and what it was asked after it.
    text = re.split(r" \[(?:tensorstore_spec|source locations|os_error_code)", text)[0]
    parts = text.split(": ")
    while len(parts) > 1 and len(": ".join(parts)) > _LENGTH:
        del parts[0]
    return ": ".join(parts)[:_LENGTH]


def silence() -> None:
    """Keep Orbax's log and the aftermath of its errors off the terminal; others' are let through."""
    logging.getLogger("absl").addFilter(_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_not_about_orbax)
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname


def _not_about_orbax(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None  # may say no more than what a disk says
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    if any("/orbax/" in frame.f_code.co_filename for frame, _ in frames):
        return False
    message = record.getMessage().lower()  # names the coroutine, or the exception of TensorStore
    return not any(word in message for word in ("/orbax/", "tensorstore", "ocdbt"))


class _Unraisable:
    """`sys.unraisablehook` before this one, but for what Orbax leaves behind."""

    def __init__(self, previous: Any):
        self._previous = previous

    def __call__(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        if code is not None and "/orbax/" in code.co_filename:
            return
        error = unraisable.exc_value
        if isinstance(error, RuntimeError) and str(error) == "Event loop is closed":
            return
        self._previous(unraisable)
