"""How programs end: one line on standard error and an exit code, whatever happened."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fqs_jax.runtime import doors
from fqs_jax.runtime.errors import Interrupted, SaidElsewhere, UserError
from tests.conftest import REPO


class PanicException(BaseException):
    """As Rust libraries raise it."""


class JaxRuntimeError(RuntimeError):
    """As JAX raises it."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FQS_TRACEBACK", raising=False)
    monkeypatch.setenv(
        "PYTHONSAFEPATH", os.environ.get("PYTHONSAFEPATH", "")
    )  # restored at the end
    return tmp_path / "cache" / "fqs_jax" / "errors"


def ended(work: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code of a program that does this work, and its line on standard error."""
    with pytest.raises(SystemExit) as end:
        doors.run(work)
    [line] = capsys.readouterr().err.splitlines()
    return end.value.code, line


def test_what_another_process_explains_is_not_said_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a fault in what process 0 does for all, the others know nothing but that."""
    with pytest.raises(SystemExit) as end:
        doors.run(raising(SaidElsewhere("process 0 stopped; see its error")))
    assert end.value.code == 2 and capsys.readouterr().err == ""


def raising(error: BaseException) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("give --text=FILE"), "error: give --text=FILE"),
        (UserError("two\nlines \x1b[31m\u202e"), r"error: two\nlines \x1b[31m\u202e"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a\nb"), r"error: a\nb: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", b"\xff"), r"error: \udcff: Permission"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: the system refuses: No space"),
        (OSError(errno.ENOSPC, "No space left on device", "W/a"), "error: W/a: No space left on"),
        (OSError("a library's words"), "error: the system refuses: a library's words"),
        (ValueError("native: No space left on device\nmore"), "error: No space left on device ("),
        (MemoryError(), "error: this machine has too little memory for that"),
        (
            UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"),
            r"error: a\udcff has characters that utf-8 does not have; rename",
        ),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "error: a device ran out of memory; give it"),
        (JaxRuntimeError("INTERNAL: it broke\nframes"), "error: a device failed, or what compiles"),
        (
            RuntimeError("Unable to initialize backend 'cuda': none"),
            "error: JAX finds no device of the kind in JAX_PLATFORMS=",
        ),
        (
            RuntimeError("Unknown backend foo"),
            "error: JAX finds no device of the kind in JAX_PLATFORMS=",
        ),
    ],
)
def test_a_fault_is_explained(
    error: BaseException, line: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = ended(raising(error), capsys)
    assert code == 2 and printed.startswith(line)
    assert not cache.exists()  # nobody needs its traceback


def test_a_library_that_fails_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    """JAX asserts in xla_bridge.py that a platform it knows is there."""
    code = compile("assert False", "/jax/_src/xla_bridge.py", "exec")
    assert "JAX finds no device" in ended(lambda: exec(code), capsys)[1]


@pytest.mark.parametrize("error", [KeyError("a\nb"), RecursionError(), PanicException("é")])
def test_an_error_of_the_program_asks_for_a_report(
    error: BaseException, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = ended(raising(error), capsys)
    match = re.fullmatch(r"error: unexpected (\w+): .*; please report it with .* in (\S+)", line)
    assert code == 2 and match is not None and match[1] == type(error).__name__
    text = Path(match[2]).read_text()
    assert Path(match[2]).parent == cache and "Traceback" in text and "in work" in text


def test_where_the_cache_cannot_be_written_the_temporary_folder_has_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = ended(raising(KeyError("a")), capsys)[1]
    assert Path(line.split()[-1]).parent == tmp_path
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    line = ended(raising(KeyError("a")), capsys)[1]
    assert line.endswith("please report it with the traceback that FQS_TRACEBACK=1 prints")


def test_tracebacks_are_printed_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FQS_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        doors.run(raising(UserError("no")))
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback") and last == "error: no"


@pytest.mark.parametrize(
    "error, code, line",
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (Interrupted("saved; run it again", signal.SIGTERM), 143, "saved; run it again"),
        (Interrupted("without saving", signal.SIGTERM, saved=False), 2, "without saving"),
        (Interrupted("without saving", signal.SIGINT, saved=False), 130, "without saving"),
    ],
)
def test_interruptions(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(error), capsys) == (code, line)


def test_success_and_a_code_that_is_asked_for() -> None:
    doors.run(lambda: None)
    with pytest.raises(SystemExit) as end:
        doors.run(lambda: sys.exit(3))
    assert end.value.code == 3


PROGRAM = "from fqs_jax.runtime import doors; doors.run(lambda: print('3 é \u202e' * 9000))"


def shell(script: str, **environment: str) -> tuple[int, str, str]:
    """Run PROGRAM as $P in a shell: exit code, output, error."""
    variables = os.environ | {"P": PROGRAM, "PY": sys.executable} | environment
    done = subprocess.run(
        ["bash", "-c", script], cwd=REPO, env=variables, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "redirection, expected",
    [
        (">&-", "error: standard output is closed; direct it to a file, or to /dev/null\n"),
        (">/dev/full", "error: standard output: No space left on device; free some space and"),
        ("| true; exit ${PIPESTATUS[0]}", "error: standard output: Broken pipe\n"),
        (">&- 2>&-", ""),
        (">/dev/full 2>/dev/full", ""),
    ],
)
def test_output_that_nobody_gets(redirection: str, expected: str) -> None:
    code, _, errors = shell(f'"$PY" -c "$P" {redirection}')
    assert code == 2 and errors.startswith(expected) and errors.count("\n") == bool(expected)


def test_a_closed_input_or_error_does_not_matter() -> None:
    code, out, _ = shell('"$PY" -c "$P" <&- 2>&-')
    assert code == 0 and out.startswith("3 é")


def test_every_character_can_be_printed_anywhere() -> None:
    code, out, errors = shell('"$PY" -c "$P"', PYTHONIOENCODING="ascii")
    assert code == 0 and out.startswith(r"3 \xe9 \u202e") and not errors
