"""Threads for virtual devices."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fqs_jax.runtime import virtual_devices

TASKS = Path("/proc/self/task")
FLAG = "--xla_force_host_platform_device_count=4"


@pytest.mark.parametrize(
    "environment, cores, expected",
    [
        ({}, 2, None),
        ({"JAX_NUM_CPU_DEVICES": "1"}, 2, None),
        ({"JAX_NUM_CPU_DEVICES": "-1"}, 2, None),  # JAX's own default
        ({"JAX_NUM_CPU_DEVICES": "8"}, 2, "64"),
        ({"JAX_NUM_CPU_DEVICES": "8"}, 96, "96"),
        ({"XLA_FLAGS": f"--a=1 {FLAG} --b=2"}, 2, "32"),
        ({"JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": FLAG}, 2, "16"),  # JAX's own variable counts
        ({"JAX_NUM_CPU_DEVICES": "8", "PJRT_NPROC": "3"}, 2, None),
        ({"JAX_NUM_CPU_DEVICES": "8", "PJRT_NPROC": ""}, 2, "64"),
    ],
)
def test_threads(environment: dict[str, str], cores: int, expected: str | None) -> None:
    found = virtual_devices.new_environment(environment, cores)
    assert found == ({"PJRT_NPROC": expected} if expected else {})


@pytest.mark.skipif(not TASKS.is_dir(), reason="this system does not list a process's threads")
def test_xla_makes_as_many_threads_as_are_requested() -> None:
    """Those of this process, whose environment tests/conftest.py has set."""
    jax.block_until_ready(jnp.ones(8) + 1)
    names = [path.read_text().strip() for path in TASKS.glob("*/comm")]
    assert names.count("tf_XLAEigen") >= int(os.environ["PJRT_NPROC"]) == 64
