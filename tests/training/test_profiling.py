"""Traces of steps: read back as Perfetto reads them, the JSON of Chrome's trace viewer."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fqs_jax.runtime.errors import UserError
from fqs_jax.training.profiling import NAME, Profiler, Steps, parsed


def traced(folder, steps, first, last):
    """The steps in the traces after steps first to last have run."""
    double = jax.jit(lambda x: x * 2)
    with Profiler(steps, folder) as profiler:
        x = jnp.ones(8)
        for number in range(first, last + 1):
            with profiler.step(number):
                x = double(x)
            profiler.done(number, x)
    found = []
    for path in sorted(folder.rglob("*.trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        found += [e["args"]["step_num"] for e in events if e.get("name") == NAME]
    return sorted(map(int, found))


@pytest.mark.parametrize(
    "first, last, expected",
    [(1, 5, [3, 4]), (4, 5, [4]), (1, 3, [3]), (5, 6, [])],
    ids=["whole", "resumed inside", "stopped inside", "resumed behind"],
)
def test_the_trace_has_the_steps_that_were_asked_for(tmp_path, capsys, first, last, expected):
    assert traced(tmp_path, Steps(3, 4), first, last) == expected
    assert ("open it at ui.perfetto.dev" in capsys.readouterr().err) == bool(expected)


def test_a_trace_that_cannot_be_written_is_one_note(tmp_path, capsys):
    (tmp_path / "plugins").write_text("a file")
    assert traced(tmp_path, Steps(1, 2), 1, 3) == []
    assert capsys.readouterr().err.count("training goes on") == 1


def test_what_is_asked_for():
    assert parsed("", Path("W"), 5) is None
    assert parsed("5:5", Path("W"), 5) == Steps(5, 5)
    for given in ("5", "0:3", "3:2", "a:b", "1:2:3", "-1:2", "1.5:2"):
        with pytest.raises(
            UserError, match=f"--profile_steps={given}: give the first and the last"
        ):
            parsed(given, Path("W"), 9)
    with pytest.raises(UserError, match="no stage of this command takes more than 9 steps"):
        parsed("10:12", Path("W"), 9)
