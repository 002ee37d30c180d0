"""Devices to compile for: TPU slices that are not attached, and virtual CPU devices."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from fqs_jax.runtime.device_memory import GIB
from fqs_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, with its vendor's figures.

    Attributes:
      name: name of the device.
      flops: peak bfloat16 FLOP/s.
      memory: bytes that a program may use.
      memory_bandwidth: bytes/s of the memory.
      link_bandwidth: bytes/s of all links to other chips together, in one direction.
      memory_is_real: True if a program that needs more than `memory` fails.
    """

    name: str
    flops: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float
    memory_is_real: bool = True


# Cloud TPU documentation, "TPU v5e", "TPU v5p", "TPU v6e" (docs.cloud.google.com/tpu/docs/v5e and so
# on), key specifications per chip: peak bf16, HBM bandwidth, inter-chip interconnect (1600, 4800 and
# 3200 Gbps in each direction). Memory is the part of 16, 95 and 32 GB that the TPU compiler reports as
# available.
TPUS = {
    "v5e": Chip("TPU v5e", 197e12, int(15.75 * GIB), 819e9, 1600e9 / 8),
    "v5p": Chip("TPU v5p", 459e12, int(95.74 * GIB), 2765e9, 4800e9 / 8),
    "v6e": Chip("TPU v6e", 918e12, int(31.25 * GIB), 1640e9, 3200e9 / 8),
}
# Roughly one core of a workstation. The figures show which part is slow, not how slow it is.
CPU = Chip("CPU", 100e9, 4 * GIB, 10e9, 10e9, memory_is_real=False)

EXAMPLES = "v5e:2x2 ... v5e:16x16, v5p:2x2x1 ... v5p:4x4x8, v6e:2x2 ... v6e:16x16, or cpu:8"


def find(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
    """The kind of chip and the devices of a topology such as "v5e:4x4" or "cpu:8".

    Raises:
      UserError: the topology does not exist, or libtpu is not installed.
    """
    kind, _, size = topology.partition(":")
    if kind == "gpu" or kind == "cuda":
        raise UserError(
            "GPUs cannot be compiled for unless one is attached; train with --max_steps=1 on the GPU, "
            f"or choose another --topology: {EXAMPLES}"
        )
    if kind == "cpu" and re.fullmatch(r"[1-9]\d{0,3}", size):
        return CPU, _cpus(int(size))
    if kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", size):
        return TPUS[kind], _tpus(topology)
    raise UserError(f"--topology={topology} is not known; choose from {EXAMPLES}")


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
    # Without these, libtpu looks for an attached TPU and writes logs.
    for name, value in {
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
    }.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={topology}: {reason}; choose from {EXAMPLES}") from error
