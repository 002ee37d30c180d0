"""launch/slurm.sh under a real SLURM of two nodes: what is queued again, what is not, and what is said.

The first test is the short one that always runs where SLURM is installed; the others take minutes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import slurm
from tests.launch.slurm import Cluster, Job

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing())),
]

# A run that does not end by itself.
ENDLESS = ("--config=configs/tiny.py", "--stage=0", "--config.stage_0.steps=1000000")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster for one test: it takes a second, and no job of another test can be in the way."""
    with slurm.started(tmp_path / "slurm") as cluster:
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


def only_error(job: Job) -> str:
    """The one line that says what is wrong."""
    assert len(job.errors()) == 1, job.log()
    return job.errors()[0]


@pytest.mark.timeout(1200)  # two starts of two processes, beside other tests
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
    assert job.steps() == sorted(job.steps()) and job.errors() == []  # it did not begin again

    os.kill(job.process(1), signal.SIGKILL)  # as the system does when memory is short
    assert_ended_once(job, 137, restarts=1)
    line = only_error(job)
    assert line.startswith("error: process 1 on n2 is gone without a word: ")


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_the_time_limit_saves_and_the_job_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """Nothing is sent from here: SLURM asks the tasks to stop a minute before the limit."""
    run = tmp_path / "W"
    flags = (*ENDLESS, f"--workdir={run}", "--config.checkpoint_every=1000000")
    job = cluster.submit(*flags, minutes=3, sbatch="--signal=TERM@60")
    job.wait_until(lambda: job.facts()["Restarts"] == "1")
    stopped_at = saved(run)
    job.wait_until(lambda: job.steps()[-1] > stopped_at > 0)
    assert job.steps() == sorted(job.steps()) and job.errors() == []
    job.cancel()


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_a_full_disk_ends_the_job(cluster: Cluster) -> None:
    run = cluster.small / "W"
    job = cluster.submit(*ENDLESS, f"--workdir={run}", "--config.checkpoint_every=200")
    job.wait_until(lambda: saved(cluster.seen(run)))
    with contextlib.suppress(OSError), open(cluster.seen(cluster.small / "filler"), "wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    assert_ended_once(job, 2)
    line = only_error(job)
    assert "No space left on device" in line


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_eight_tasks_are_carried_on_by_two(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "W"
    flags = (
        *("--config=configs/tiny.py", "--stage=0,1", f"--workdir={run}"),
        *("--config.stage_0.steps=4", "--config.stage_1.steps=1000000"),
        *("--config.checkpoint_every=3", "--config.batch_size=8"),
    )
    eight = ("--config.mesh.data=4", "--config.mesh.fsdp=2")
    job = cluster.submit(*flags, *eight, tasks=8)
    job.wait_until(lambda: saved(run, stage=1))
    job.ask_to_stop()
    job.wait_until(lambda: job.facts()["Restarts"] == "1")
    job.cancel()
    stopped_at = saved(run, stage=1)

    job = cluster.submit(*flags, "--config.mesh.data=1", "--config.mesh.fsdp=2")
    # A line of progress comes every 20 s, perhaps after the first save.
    job.wait_until(lambda: saved(run, stage=1) > stopped_at and bool(job.steps()))
    assert min(job.steps()) >= stopped_at and job.errors() == []


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_a_folder_that_is_not_shared_is_named_with_its_hosts(cluster: Cluster) -> None:
    run = cluster.private / "W"
    job = cluster.submit(*ENDLESS, f"--workdir={run}")
    assert_ended_once(job, 2)
    line = only_error(job)
    assert line.startswith(f"error: {run} of process 0 (n1) is not there on n2: ")


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_a_hung_task_is_named_with_its_host_and_its_silence(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "W"
    job = cluster.submit(*ENDLESS, f"--workdir={run}", "--config.checkpoint_every=200")
    job.wait_until(lambda: saved(run))
    os.kill(job.process(1), signal.SIGSTOP)
    assert_ended_once(job, 134)
    line = only_error(job)
    silence = re.match(r"error: process 1 on n2 has been silent for (\d+) s: ", line)
    assert silence and int(silence[1]) >= 120
    assert "run the same command again to resume" in line


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_what_eight_tasks_would_say_is_said_once(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(
        "--config=configs/tiny.py", "--stage=9", f"--workdir={tmp_path}/W", tasks=8
    )
    assert_ended_once(job, 2)
    assert "9" in only_error(job)
