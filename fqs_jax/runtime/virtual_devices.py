"""Threads for the virtual devices into which JAX can split a CPU, as tests of meshes do.

XLA runs all of them on one pool, with as many threads as there are cores or virtual devices. A device that
waits for the others in a collective operation holds its thread, and one device may wait in several at
once. If all threads wait, none is left for the device that they wait for, and after 40 s XLA ends the
process. So the pool needs several threads a device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

THREADS = "PJRT_NPROC"  # what XLA reads as the number of cores
_PER_DEVICE = 8  # two were enough for a thinking step on 2 x 4 devices, which one a device stopped
_XLA_FLAG = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def make_room() -> None:
    """Let XLA make enough threads for the virtual devices. Call it before JAX has devices."""
    os.environ.update(new_environment(os.environ, os.cpu_count() or 1))


def new_environment(environment: Mapping[str, str], cores: int) -> dict[str, str]:
    """The number of threads to request, as an environment variable; empty if XLA's own will do.

    Args:
      environment: JAX_NUM_CPU_DEVICES or XLA_FLAGS say how many virtual devices there will be.
    """
    found = _XLA_FLAG.search(environment.get("XLA_FLAGS", ""))
    count = environment.get("JAX_NUM_CPU_DEVICES") or (found[1] if found else "")
    if environment.get(THREADS) or not count.isdecimal() or int(count) < 2:
        return {}
    return {THREADS: str(max(cores, _PER_DEVICE * int(count)))}
