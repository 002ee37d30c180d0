"""The consequences of Orbax's errors stay off the terminal, and nothing else does."""

import asyncio
import gc
import sys
import types

import pytest

from fqs_jax.runs.checkpoints import Checkpoints
from fqs_jax.runtime import orbax_errors


@pytest.fixture(autouse=True)
def reported(monkeypatch):
    """The errors that reach the previous hook."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    return found


@pytest.mark.parametrize(
    "file, expected",
    [("/lib/orbax/checkpoint/async_path.py", []), ("/lib/other/path.py", ["never retrieved"])],
)
def test_an_error_that_nobody_asks_for(file, expected, caplog):
    """A full disk's own words name nobody; where they come from does."""
    orbax_errors.silence()
    write = {}
    exec(compile("def write():\n    raise OSError(28, 'No space left')", file, "exec"), write)

    async def leave_behind():
        loop = asyncio.get_running_loop()
        await asyncio.wait([loop.run_in_executor(None, write["write"])])

    asyncio.run(leave_behind())
    gc.collect()
    said = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert len(said) == len(expected)
    assert all(words in line for words, line in zip(expected, said, strict=True))


def test_other_errors_that_nobody_can_catch_are_reported(reported):
    def unraisable(error, file=""):
        code = types.SimpleNamespace(co_filename=file)
        value = types.SimpleNamespace(cr_code=code) if file else None
        return types.SimpleNamespace(exc_value=error, object=value)

    orbax_errors.silence()
    sys.unraisablehook(unraisable(KeyError(), "/lib/orbax/checkpoint/async_path.py"))
    sys.unraisablehook(unraisable(RuntimeError("Event loop is closed")))
    assert reported == []
    others = [unraisable(KeyError(), "/lib/other.py"), unraisable(RuntimeError("another"))]
    for other in others:
        sys.unraisablehook(other)
    assert reported == others


def test_checkpoints_leave_the_hooks_of_their_process_alone(tmp_path):
    before = sys.unraisablehook
    with Checkpoints(tmp_path):
        assert sys.unraisablehook is before
