"""Error handling of all programs: one line on standard error and an exit code.

Code 0 is success, 2 any fault, 130 a stop by Ctrl-C, 143 one by SIGTERM after which everything is saved,
and 134 the loss of another process of the run (runtime/watch.py). A fault of the input, the machine or the
user is explained. Any other exception is an error of this program: its line asks for a report and names a
file with the traceback. FQS_TRACEBACK=1 prints tracebacks on standard error too.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fqs_jax.runtime import buckets, files, inputs, processes, sigterm
from fqs_jax.runtime.errors import Interrupted, SaidElsewhere, UserError, printable
from fqs_jax.runtime.stderr import say

FAULT = 2  # exit code
_MOST_SHOWN = 4000  # characters of a line
_NO_SPACE = os.strerror(errno.ENOSPC)
_NO_SPACE_HINT = "; free some space and run the same command again"


def run(work: Callable[[], object]) -> None:
    """Do the work of a program, and exit if it fails or asks to exit.

    Standard output is flushed before success is reported, because a full disk shows only then.
    """
    code: object = None
    try:
        _prepare_streams()
        _hide_current_folder_from_children()
        work()
    except SystemExit as asked:
        code = asked.code
    except BaseException as error:  # a panic of a Rust library is no Exception
        _end(error)
    try:
        sys.stdout.flush()
    except OSError as error:
        _end(error)
    if code in (None, 0):
        processes.meet()
    else:
        processes.part(f"exit code {code}")
    if code is not None:
        sys.exit(code)  # type: ignore[arg-type]


def explain(error: BaseException) -> str | None:
    """One line about a fault of the input, the machine or the user; None for an error of this program."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if _NO_SPACE in text and not isinstance(error, OSError):  # a native library writes too
        return f"{_NO_SPACE} ({_first_line(text)}){_NO_SPACE_HINT}"
    if type(error).__module__.split(".")[0] in buckets.LIBRARIES:
        return f"a request to a bucket failed: {buckets.reason(error)}"
    if isinstance(error, OSError):
        return _explain_system_error(error)
    if isinstance(error, MemoryError):
        return "this machine has too little memory for that; give less at once, or use a larger one"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{printable(error.object, 200)} has characters that {error.encoding} does not have; "
            "rename the file or change the text"
        )
    if "RESOURCE_EXHAUSTED" in text:
        return (
            "a device ran out of memory; give it less at once, with a smaller --batch_size or shorter "
            f"texts, or divide the model among devices with --fsdp=N ({_first_line(text)})"
        )
    if (
        "Unable to initialize backend" in text
        or "Unknown backend" in text
        or _has_no_backend(error)
    ):
        reason = f" ({_first_line(text)})" if text else ""
        return (
            f"JAX finds no device of the kind in JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
            f"{reason}; unset it, or set JAX_PLATFORMS=cpu"
        )
    if any(kind.__name__ == "JaxRuntimeError" for kind in type(error).__mro__):
        return f"a device failed, or what compiles for it: {_first_line(text)}"
    return None


def _has_no_backend(error: BaseException) -> bool:
    """True for the bare assertion with which JAX reports a platform that it knows and does not have."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, AssertionError) and Path(frames[-1].filename).stem == "xla_bridge"


def _end(error: BaseException) -> None:
    """Print the line of an exception, and exit."""
    sigterm.ignore()
    if os.environ.get("FQS_TRACEBACK") == "1":
        _say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, Interrupted):
        line = str(error) if processes.is_main() else ""
        # A batch system starts a run again that exits with 143.
        code = 128 + error.signum if error.saved or error.signum != signal.SIGTERM else FAULT
    elif isinstance(error, KeyboardInterrupt):
        line, code = "stopped", 128 + signal.SIGINT
    else:
        line, code = f"error: {explain(error) or _unexpected(error)}", FAULT
    _drop_output()
    line = printable(line, _MOST_SHOWN)
    together = isinstance(error, Interrupted) and error.saved
    # What all processes would say, process 0 says.
    speaks = processes.part(None if together else line or "stopped")
    if speaks and line and not isinstance(error, SaidElsewhere):
        _say(line)
    processes.leave(code)


def _explain_system_error(error: OSError) -> str:
    reason = error.strerror or _first_line(str(error)) or type(error).__name__
    hint = _NO_SPACE_HINT if error.errno == errno.ENOSPC else ""
    if error.filename is not None:
        return f"{inputs.name(os.fsdecode(error.filename))}: {reason}{hint}"
    return f"the system refuses: {reason}{hint}"


def _unexpected(error: BaseException) -> str:
    """The line about an error of this program; its traceback is kept in a file."""
    kind = f"unexpected {type(error).__name__}: {printable(str(error), 300)}"
    file = _keep_traceback(error)
    if file is None:
        return f"{kind}; please report it with the traceback that FQS_TRACEBACK=1 prints"
    return f"{kind}; please report it with the traceback in {file}"


def _keep_traceback(error: BaseException) -> Path | None:
    """A new file with the traceback, in the cache folder or else in the temporary folder."""
    text = f"{sys.argv}\n" + "".join(traceback.format_exception(error))
    for find in (lambda: files.cache_folder() / "errors", lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder = find()
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(".txt", "fqs_error_", folder)
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return Path(name)
    return None


def _prepare_streams() -> None:
    """Open streams that are closed, and let every character be printed on any terminal.

    A file that is opened while descriptor 1 is closed would get that number, and with it whatever a
    native library prints.

    Raises:
      UserError: standard output is closed, so that nothing would get the results.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
        raise UserError("standard output is closed; direct it to a file, or to /dev/null")
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _named(sys.stdout)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _StandardOutput(io.FileIO):
    """Descriptor 1, whose errors say that they are its."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


def _named(stdout: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream on a `_StandardOutput`."""
    return io.TextIOWrapper(
        io.BufferedWriter(_StandardOutput(1, "w", closefd=False)),
        encoding=stdout.encoding,
        line_buffering=stdout.line_buffering,
        write_through=stdout.write_through,
    )


def _hide_current_folder_from_children() -> None:
    """Keep the current folder off the import path of Python processes that this one starts.

    It may be a downloaded checkpoint that holds a module named numpy. It stays if it holds this package.
    """
    with contextlib.suppress(OSError):  # the folder is gone
        if Path(__file__).resolve().parents[2] != Path.cwd():
            os.environ.setdefault("PYTHONSAFEPATH", "1")


def _drop_output() -> None:
    """Discard output that cannot be written; Python would try again at its exit, and print a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        say(line)


def _first_line(text: str) -> str:
    return printable(text.strip().partition("\n")[0], 200)
