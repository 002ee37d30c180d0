"""The programs that a stage compiles, and the folder in which they are cached.

That a step passes over the text once, for all rationales and for both phases, is a matter of FLOPs:
`test_flops.test_a_thinking_step` finds exactly one such pass in the traced program.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from fqs_jax.curriculum import resolve
from fqs_jax.runs import source
from fqs_jax.runtime import compiled_programs, files, sharding
from fqs_jax.runtime.interrupts import Interrupts, Requests
from fqs_jax.training import loop, start
from tests.conftest import REPO
from tests.tiny_runs import clock_config


class Compiled(logging.Handler):
    """Names of the programs that JAX says it compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Finished XLA compilation of "):
            self.names.append(message.split()[4])


class Watching(Interrupts):
    """Notes after every step how many programs have been compiled."""

    def __init__(self, compiled: Compiled) -> None:
        super().__init__()
        self.compiled = compiled
        self.counts: list[int] = []

    def requests_of_last_step(self, save: bool = False) -> Requests:
        self.counts.append(len(self.compiled.names))
        return super().requests_of_last_step(save)


@pytest.fixture
def compiled() -> Iterator[Compiled]:
    logger, handler = logging.getLogger("jax"), Compiled()
    logger.addHandler(handler)
    with jax.log_compiles():
        yield handler
    logger.removeHandler(handler)


def test_a_stage_compiles_one_step_and_nothing_after_the_first(
    tmp_path: Path, compiled: Compiled
) -> None:
    root, config = tmp_path / "W", clock_config({"checkpoint_every": 2})
    model, tokenizer = source.prepare(root, config)
    for recipe in resolve.recipes(config, model):
        compiled.names.clear()
        watch = Watching(compiled)
        run = start.Run(root, config, tokenizer, sharding.single_device(), watch, str)
        loop.run_stage(run, recipe)
        assert len(watch.counts) == 5  # after every step but the last, over two saves
        # The first save makes the programs of the fingerprints.
        first, second, third, *_, last = watch.counts
        assert first == second and third == last
        assert set(compiled.names[second:third]) <= {"jit(_leaf)"}
        assert compiled.names.count("jit(train_step)") == 1


def test_compiled_programs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the user's cache folder, or in the one that JAX is configured with."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours = str(tmp_path / "cache" / "fqs_jax" / "jax")
    assert ours == str(files.cache_folder() / "jax")
    try:
        for given, expected in ((None, ours), (str(tmp_path), str(tmp_path))):
            jax.config.update("jax_compilation_cache_dir", given)
            compiled_programs.keep()
            assert jax.config.jax_compilation_cache_dir == expected  # type: ignore[attr-defined]
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        for given in (None, str(tmp_path)):  # of several processes, where all of them were told to
            jax.config.update("jax_compilation_cache_dir", given)
            compiled_programs.keep()
            assert jax.config.jax_compilation_cache_dir == given  # type: ignore[attr-defined]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


KEPT = """
import jax
from fqs_jax.runtime import compiled_programs
compiled_programs.keep()
jax.jit(lambda x: x + 1)(jax.numpy.ones(8))
print(jax.config.jax_persistent_cache_min_compile_time_secs)
"""


@pytest.mark.parametrize("given, expected", [(None, 0.1), ("0", 0.0), ("3600", 3600.0)])
def test_programs_that_compile_quickly_are_kept_too(
    tmp_path: Path, given: str | None, expected: float
) -> None:
    """Those of plain generation are many and small.

    JAX times each compilation by its own clock, so files are checked at limits that no clock can miss.
    """
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    env = {k: v for k, v in os.environ.items() if k not in (name, compiled_programs.NAMED)}
    env |= {"XDG_CACHE_HOME": str(tmp_path)} | ({name: given} if given else {})
    command = [sys.executable, "-c", KEPT]
    done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == expected
    files = list((tmp_path / "fqs_jax" / "jax").glob("jit__lambda*"))
    if given is not None:
        assert bool(files) == (expected == 0.0)
