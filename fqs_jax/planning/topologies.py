"""Devices to compile for: TPU slices and GPUs that are not attached, and virtual CPU devices."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from fqs_jax.planning import gpus
from fqs_jax.planning.chips import CPU, TPUS, Chip
from fqs_jax.runtime.errors import UserError

EXAMPLES = (
    "v5e:2x2 ... v5e:16x16, v6e:2x2 ... v6e:16x16, v5p:2x2x1 ... v5p:4x4x8, v7x:2x2x1 ... v7x:4x4x8, "
    "h100:8, h200:8, a100:8, or cpu:8"
)


def find(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
    """The kind of chip and the devices of a topology such as "v5e:4x4", "h100:8" or "cpu:8".

    A slice "v7x:2x2x1" of 4 chips has 8 devices, because JAX sees each of a chip's two halves as one.

    Raises:
      UserError: the topology does not exist, or its compiler is not installed.
    """
    kind, _, size = topology.partition(":")
    if kind == "cpu" and re.fullmatch(r"[1-9]\d{0,3}", size):
        return CPU, _cpus(int(size))
    if kind in gpus.GPUS and re.fullmatch(r"[1-9]\d?", size) and int(size) <= gpus.MOST:
        return gpus.GPUS[kind].chip, gpus.devices(kind, int(size))
    if kind in gpus.GPUS:
        raise UserError(
            f"--topology={topology}: give 1 to {gpus.MOST} GPUs of one machine, such as {kind}:8"
        )
    if kind in ("gpu", "cuda"):
        raise UserError(
            f"--topology={topology} does not say which GPU; choose from {', '.join(gpus.GPUS)}, "
            "such as h100:8"
        )
    sides = _SIDES.get(kind, 0)
    if sides and re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{sides - 1}}}", size):
        return TPUS[kind], _tpus(topology)
    if sides:
        raise UserError(
            f"--topology={topology}: a {kind} slice has {sides} sides; choose from {EXAMPLES}"
        )
    raise UserError(f"--topology={topology} is not known; choose from {EXAMPLES}")


# Number of sides of a slice. libtpu also takes a flat "tpu7x:2x2"; Google offers slices with three.
_SIDES = {"v5e": 2, "v6e": 2, "v5p": 3, "v7x": 3}
# The names by which libtpu knows a kind, where they differ.
_NAMES = {"v7x": "tpu7x"}


def _cpus(count: int) -> Sequence[jax.Device]:
    with contextlib.suppress(RuntimeError):  # JAX has started, and its devices are fixed
        if jax.config.jax_num_cpu_devices < count:  # type: ignore[attr-defined]
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"cpu:{count}: this process has {len(devices)} CPU devices already; unset XLA_FLAGS and "
            "JAX_NUM_CPU_DEVICES"
        )
    return devices[:count]


def _tpus(topology: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU needs its compiler: pip install 'fqs_jax[plan]' (or try "
            "--topology=cpu:8, which needs nothing)"
        )
    # Without these, libtpu looks for an attached TPU and writes logs. The flag is for v7x: without a chip,
    # libtpu 0.0.42 counts one SparseCore a device, and aborts where it gives them an all-reduce.
    for name, value in {
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
        "LIBTPU_INIT_ARGS": "--xla_tpu_enable_sparse_core_collective_offload_all_reduce=false",
    }.items():
        os.environ.setdefault(name, value)
    kind, _, size = topology.partition(":")
    name = f"{_NAMES.get(kind, kind)}:{size}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={topology}: {reason}; choose from {EXAMPLES}") from error
