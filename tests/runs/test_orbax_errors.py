"""What Orbax leaves behind stays off the terminal, and nothing else does."""

import asyncio
import gc

import pytest

from fqs_jax.runs import orbax_errors


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
