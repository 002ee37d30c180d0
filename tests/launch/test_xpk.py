"""launch/gke_xpk.sh with the real xpk, in its dry run: the JobSet that a cluster would get."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from fqs_jax.runtime import doors, watch
from tests.conftest import REPO
from tests.launch import packages

pytestmark = [pytest.mark.cluster, packages.needs("xpk")]


def test_the_jobset(tmp_path: Path) -> None:
    """Two slices of four hosts: how many pods, how long they may save, and which exit codes end the job."""
    manifest = tmp_path / "manifest.yaml"
    done = subprocess.run(
        [
            REPO / "launch/gke_xpk.sh",
            *("--cluster=c", "--zone=us-central2-b", "--project=p", "--workload=fqs"),
            *("--tpu_type=v5litepod-16", "--hosts=8", "--num_slices=2", "--image=gcr.io/p/fqs:1"),
            f"--xpk=--dry-run --skip-validation --output-manifest-file={manifest}",
            *(
                "--",
                "--config=configs/mistral_7b.py",
                "--text=gs://b/it's/*.jsonl",
                "--workdir=gs://b/W",
            ),
        ],
        env=packages.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job_set = yaml.safe_load(manifest.read_text())["spec"]
    assert job_set["failurePolicy"]["maxRestarts"] == 10
    [rule] = job_set["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])

    [slices] = job_set["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 4, 4)
    [rule] = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    starts_again = set(rule["onExitCodes"]["values"])
    # Asked to stop and saved; another process was lost; killed. A fault ends the job.
    assert {143, watch.AFTER_LOSS, 137} <= starts_again
    assert not {doors.FAULT, watch.AFTER_FAULT, 1} & starts_again

    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 300
    [container] = pod["containers"]
    assert container["image"] == "gcr.io/p/fqs:1"
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    [line] = [line for line in container["command"][-1].splitlines() if "fqs_jax.launch" in line]
    # In the shell of the pod, with another program in the place of Python.
    shown = line.replace("exec python", "printf '%s\\n'").replace("&", ";").split(" PID=")[0]
    words = subprocess.check_output(["bash", "-c", shown], text=True).splitlines()
    assert words == [
        *("-m", "fqs_jax.launch", "--expect_processes=8", "--config=configs/mistral_7b.py"),
        *("--text=gs://b/it's/*.jsonl", "--workdir=gs://b/W"),
    ]
