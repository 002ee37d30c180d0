"""Programs of the package in processes that are forked from one in which the libraries are imported.

The tests start programs some hundred times, and most of them only refuse their arguments: without this,
imports would be a good part of the suite's time. Nothing of JAX is initialised before the fork.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from tests import forked
from tests.conftest import ONE_DEVICE

LIBRARIES = ["flax", "grain", "ml_collections", "optax", "orbax.checkpoint", "pyarrow.parquet"]
LIBRARIES += ["rich.table", "safetensors", "scipy.stats", "sentencepiece", "tokenizers"]
LIBRARIES += ["jax.experimental.pallas.ops.tpu.splash_attention"]
# Variables that are read when libraries are imported, or Python starts.
READ_EARLY = ("HF_", "JAX_", "LANG", "LC_", "PYTHON", "TF_", "XLA_")
TIMEOUT = 300.0  # seconds in which every program here is at its end
_at_start = os.environ | ONE_DEVICE
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(LIBRARIES)


def serves(environment: Mapping[str, str]) -> bool:
    """True if programs can have this environment: the libraries were imported under one like it."""
    if sys.platform == "darwin":  # some of its system libraries cannot be forked
        return False
    return _early(environment) == _early(_at_start)


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}


def run(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """Run a module as `python -m` does: its exit code, standard output and standard error.

    Such a process does not end as a program does: nothing that is registered with atexit runs.
    """
    with mock.patch.dict(os.environ, _at_start, clear=True):
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = _server.Process(
            target=forked.main,
            args=(module, list(arguments), folder, dict(environment), out, err),
        )
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{module} {arguments}: {err.read_text()}")
        return process.exitcode, out.read_text(), err.read_text()
