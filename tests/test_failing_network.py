"""A bucket behind a network that fails: the run ends as an undisturbed one, or stops so that it resumes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fqs_jax.runs import folders, loading
from fqs_jax.runs.metrics_file import read_lines, steps_of
from fqs_jax.runs.time_spent import REPEATED
from fqs_jax.runtime import paths
from tests import emulator
from tests.conftest import ONE_DEVICE
from tests.tiny_runs import run

pytest.importorskip("gcsfs")  # which brings aiohttp
from tests.failing_proxy import FailingProxy

# One request in twenty fails, and one in a hundred is cut off, some of these after it was carried out.
SHARES = {"429": 0.02, "503": 0.03, "lost": 0.007, "cut": 0.003, "slow": 0.01}
FLAGS = ["--config=tiny", "--config.log_every=1"]
ONE_STAGE = ["--stage=0", "--max_steps=12", "--config.checkpoint_every=6"]
ALL_STAGES = [
    "--stage=all",
    "--config.batch_size=8",
    "--config.model.num_layers=1",
    "--config.checkpoint_every=10",
    *(f"--config.stage_{number}.steps={steps}" for number, steps in enumerate((40, 20, 30, 20))),
    "--max_steps=40",
]
READ = "import sys; from tests.test_failing_network import read; read(*sys.argv[1:])"


@pytest.mark.parametrize(
    ("flags", "kills"),
    [
        pytest.param(ONE_STAGE, 0, id="one_stage"),
        pytest.param(
            ALL_STAGES,
            4,
            id="all_stages_killed_four_times",
            marks=(pytest.mark.exhaustive, pytest.mark.timeout(3000)),
        ),
    ],
)
def test_a_run_behind_a_failing_network_ends_with_the_same_bits(
    flags: list[str], kills: int, tmp_path: Path
) -> None:
    address, direct = (f"http://127.0.0.1:{emulator.free_port()}" for _ in range(2))
    proxy = FailingProxy(address, direct, SHARES, seed=0)
    (tmp_path / "server").mkdir()
    with emulator.running(tmp_path / "server", direct, seen_at=address) as variables:
        cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        with proxy.running():
            starts = _starts_until_done(flags, kills, variables | cache)
        undisturbed = {name: value.replace(address, direct) for name, value in variables.items()}
        _program(["-c", READ, "gs://bucket/W", str(tmp_path / "bucket")], undisturbed | cache)
    print(f"{starts} starts; {dict(proxy.happened)}")
    assert starts <= 4 + kills and all(proxy.happened[name] for name in ("429", "503", "slow"))
    assert proxy.happened["lost"] + proxy.happened["cut"] > 0
    run("launch", *FLAGS, *flags, f"--workdir={tmp_path / 'W'}")
    read(str(tmp_path / "W"), str(tmp_path / "local"))
    found = [np.load(tmp_path / f"{name}.npz") for name in ("bucket", "local")]
    assert sorted(found[0]) == sorted(found[1]) and len(found[0]) > 10
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    repeated = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("bucket", "local")]
    assert repeated[0] > 0 and repeated[1] == 0


def read(workdir: str, out: str) -> None:
    """Write what a run has made into OUT.npz, and the number of repeated requests into OUT.json.

    It is called in a process that sees the bucket.
    """
    root, repeated = paths.expand(workdir), 0
    arrays: dict[str, Any] = {}
    for number in folders.stage_numbers(root):
        lines = read_lines(root / f"stage_{number}" / "metrics.jsonl")
        repeated += sum(line["time"].get(REPEATED, 0) for line in lines)
        rows = [{**row, "time": None} for row in steps_of(lines)]
        arrays[f"rows_{number}"] = np.array(list(map(str, rows)))
        params = loading.load(workdir, str(number)).params
        arrays |= {f"{number}_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(params))}
    np.savez(f"{out}.npz", **arrays)
    Path(f"{out}.json").write_text(json.dumps(repeated))


def _starts_until_done(flags: list[str], kills: int, environment: dict[str, str]) -> int:
    """Start the run until it ends well, and kill the first starts.

    Each end of another kind must be that of a fault, with one line.
    """
    seconds, errors = random.Random(0), ""
    for start in range(1, 12 + kills):
        command = ["-m", "fqs_jax.launch", *FLAGS, *flags, "--workdir=gs://bucket/W"]
        if start <= kills:
            with contextlib.suppress(subprocess.TimeoutExpired):
                _program(command, environment, timeout=seconds.uniform(10, 60))
            continue
        done = _program(command, environment)
        if done.returncode == 0:
            return start
        errors = done.stderr
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in errors, errors
        print(lines[0])
    raise AssertionError(f"it does not end: {errors}")


def _program(
    arguments: list[str], environment: dict[str, str], timeout: float = 1500
) -> subprocess.CompletedProcess[str]:
    """Run Python; after `timeout` seconds it is killed."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | ONE_DEVICE | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
