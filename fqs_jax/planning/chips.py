"""Figures of the devices that a plan compares a step with."""

from __future__ import annotations

import dataclasses

from fqs_jax.runtime.device_memory import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX sees it, with its vendor's figures.

    Attributes:
      name: name of the device.
      flops: peak bfloat16 FLOP/s, without sparsity.
      memory: bytes that a program may use.
      memory_bandwidth: bytes/s of the memory.
      link_bandwidth: bytes/s of all links to other chips together, in one direction.
      memory_is_real: True if a program that needs more than `memory` fails.
      default_memory: bytes that JAX takes unless it is told to take more; 0 = `memory`.
    """

    name: str
    flops: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float
    memory_is_real: bool = True
    default_memory: int = 0


# Cloud TPU documentation, pages "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x"
# (docs.cloud.google.com/tpu/docs/v5e and so on), key specifications per chip: peak bf16, HBM bandwidth,
# inter-chip interconnect (200, 600, 400 and 600 GB/s in each direction). Memory is the part of 16, 95, 32
# and 192 GB that the TPU compiler reports as available. A chip of v7x is two devices for JAX, so a device
# has half of a chip's figures; the links between the two halves of a chip are not counted.
TPUS = {
    "v5e": Chip("TPU v5e", 197e12, int(15.75 * GIB), 819e9, 200e9),
    "v5p": Chip("TPU v5p", 459e12, int(95.74 * GIB), 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 918e12, int(31.25 * GIB), 1640e9, 400e9),
    "v7x": Chip("half a TPU v7x", 2307e12 / 2, int(94.75 * GIB), 7380e9 / 2, 600e9 / 2),
}
# Roughly one core of a workstation. The figures show which part is slow, not how slow it is.
CPU = Chip("CPU", 100e9, 4 * GIB, 10e9, 10e9, memory_is_real=False)
