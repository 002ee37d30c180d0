"""launch/skypilot.yaml: what SkyPilot's own loader makes of it, and what its script starts on a host."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPO
from tests.launch import packages

FILE = REPO / "launch/skypilot.yaml"

# What `sky jobs launch --env WORKDIR=... --gpus=... --num-nodes=...` does with the file, up to the clouds.
LOADER = """
import json, sys, sky, yaml
task = sky.Task.from_yaml_config(yaml.safe_load(open(sys.argv[1])), env_overrides=[("WORKDIR", "gs://b/W")])
for gpus, nodes in ((None, 1), ("H100:8", 2)):
    if gpus:
        task.set_resources_override({"accelerators": gpus})
    task.num_nodes = nodes
    [found] = task.resources
    print("found", json.dumps({
        "cloud": str(found.cloud), "accelerators": found.accelerators, "args": found.accelerator_args,
        "spot": found.use_spot, "recovery": found.job_recovery, "nodes": task.num_nodes,
    }))
"""


@pytest.mark.cluster
@packages.needs("sky")
def test_skypilot_reads_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [packages.program("python"), "-c", LOADER, FILE],
        env=packages.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    slice_, gpus = (json.loads(line.removeprefix("found ")) for line in lines)
    assert (slice_["accelerators"], slice_["nodes"]) == ({"tpu-v5litepod-16": 1}, 1)
    assert slice_["args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}
    assert (gpus["accelerators"], gpus["nodes"]) == ({"H100": 8}, 2)
    for found in (slice_, gpus):
        assert found["cloud"] == "GCP" and found["spot"] is True
        # What is in the list is started again without end: only what has saved.
        assert found["recovery"]["recover_on_exit_codes"] == [143]
        assert not found["recovery"].get("max_restarts_on_errors")


def started(folder: Path, **variables: str) -> list[str]:
    """The arguments of fqs_jax.launch on one host."""
    task: dict[str, Any] = yaml.safe_load(FILE.read_text())
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (folder / "a.jsonl").touch()  # which the * in FLAGS does not mean
    given = {name: value for name, value in task["envs"].items() if value} | variables
    host = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.4\n5",
    }
    said = subprocess.check_output(
        ["bash", "-c", task["run"]], cwd=folder, env=os.environ | host | given, text=True
    )
    words = said.splitlines()
    assert words[:2] == ["-m", "fqs_jax.launch"]
    return words[2:]


def test_a_host_of_a_slice(tmp_path: Path) -> None:
    words = started(tmp_path, WORKDIR="gs://b/W", FLAGS="--config=c --text=*.jsonl")
    assert words == ["--expect_processes=2", "--workdir=gs://b/W", "--config=c", "--text=*.jsonl"]


def test_a_machine_with_gpus(tmp_path: Path) -> None:
    words = started(tmp_path, WORKDIR="gs://b/W", FLAGS="--config=c", EXTRA="cuda")
    assert words == [
        "--expect_processes=2",
        "--coordinator=10.0.0.4:8476",
        "--num_processes=2",
        "--process_id=1",
        "--workdir=gs://b/W",
        "--config=c",
    ]
