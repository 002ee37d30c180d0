"""Orbax's reports of a damaged checkpoint or a full disk, reduced to the part that concerns a user.

Orbax reads arrays concurrently and gives up at the first error. The errors of the other reads then
appear as tracebacks in asyncio's log, from abandoned coroutines, and from TensorStore's threads, which
find the event loop closed. All of them repeat, or follow from, the exception that is raised.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings

from fqs_jax.runtime.errors import printable

_LENGTH = 200  # of a reason, in characters


def reason(error: BaseException) -> str:
    """The innermost cause of an exception, in one line of at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    # TensorStore puts the innermost cause last, followed by an error code and the request.
    text = re.split(r" \[(?:tensorstore_spec|source locations|os_error_code)", text)[0]
    parts = text.split(": ")
    while len(parts) > 1 and len(": ".join(parts)) > _LENGTH:
        del parts[0]
    return printable(": ".join(parts)[:_LENGTH])


def silence() -> None:
    """Keep Orbax's log and the consequences of its errors off the terminal; nothing else's.

    This changes the loggers, the warnings and `sys.unraisablehook` of the whole process. Therefore
    programs call it once, at their start, and no library function does.
    """
    logging.getLogger("absl").addFilter(_is_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_about_orbax)
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    previous = sys.unraisablehook

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        is_from_orbax = code is not None and "/orbax/" in code.co_filename
        error = unraisable.exc_value
        is_closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not is_from_orbax and not is_closed:
            previous(unraisable)

    sys.unraisablehook = report


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname


def _is_not_about_orbax(record: logging.LogRecord) -> bool:
    # The message may hold no more than the operating system's text, so the traceback decides first.
    error = record.exc_info[1] if record.exc_info else None
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    if any("/orbax/" in frame.f_code.co_filename for frame, _ in frames):
        return False
    message = record.getMessage().lower()  # names the coroutine, or the exception of TensorStore
    return not any(word in message for word in ("/orbax/", "tensorstore", "ocdbt"))
