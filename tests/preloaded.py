"""Programs of the package in processes that are forked from one in which the libraries are imported.

The tests start programs some hundred times, and most of them only refuse their arguments: without this,
imports would be a good part of the suite's time. Nothing of JAX is initialised before the fork.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest

LIBRARIES = ["flax", "grain", "ml_collections", "optax", "orbax.checkpoint", "pyarrow.parquet"]
LIBRARIES += ["rich.table", "safetensors", "scipy.stats", "sentencepiece", "tokenizers"]
LIBRARIES += ["jax.experimental.pallas.ops.tpu.splash_attention"]
TIMEOUT = 300.0  # seconds in which every program here is at its end
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(LIBRARIES)


def run(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """Run a module as `python -m` does: its exit code, standard output and standard error.

    The libraries have read those variables of the environment that were set at the first call.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = _server.Process(
            target=_main,
            args=(module, list(arguments), folder, dict(environment), out, err),
        )
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{module} {arguments}")
        return process.exitcode, out.read_text(), err.read_text()


def _main(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    out: Path,
    err: Path,
) -> None:
    """The forked process."""
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
