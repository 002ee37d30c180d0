"""launch/slurm.sh under a real SLURM of two nodes: what is queued again, what is not, and what is said.

The first test is the short one that always runs where SLURM is installed; the others take minutes.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import slurm
from tests.clusters.slurm import Cluster, Job

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing())),
]

# A run that does not end by itself.
ENDLESS = ("--config=configs/tiny.py", "--stage=0", "--config.stage_0.steps=1000000")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm.started(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def saved(workdir: Path, stage: int = 0) -> int:
    """The newest checkpoint's step; 0 without one."""
    names = (path.name for path in workdir.glob(f"stage_{stage}/checkpoints/*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def assert_ended_once(job: Job, code: int, restarts: int = 0) -> None:
    """The job has failed with an exit code, and was not queued again."""
    facts = job.wait()
    found = facts["JobState"], facts["ExitCode"], facts["Restarts"]
    assert found == ("FAILED", f"{code}:0", str(restarts)), job.log()


def test_a_job_that_is_asked_to_stop_comes_back_and_one_that_loses_a_task_does_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "W"
    job = cluster.submit(*ENDLESS, f"--workdir={run}", "--config.checkpoint_every=200")
    job.wait_until(lambda: saved(run))
    job.ask_to_stop()
    job.wait_until(lambda: job.facts()["Restarts"] == "1")
    stopped_at = saved(run)
    job.wait_until(lambda: saved(run) > stopped_at)
    assert job.errors() == []

    os.kill(job.process(1), signal.SIGKILL)  # as the system does when memory is short
    assert_ended_once(job, 137, restarts=1)
    [line] = job.errors()[:1]
    assert line.startswith("error: process 1 on n2 is gone without a word: ")
