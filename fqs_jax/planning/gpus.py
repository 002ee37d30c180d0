"""NVIDIA GPUs to compile for without one: their figures, and the description that the compiler needs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from fqs_jax.planning.chips import Chip
from fqs_jax.runtime.device_memory import GIB
from fqs_jax.runtime.errors import UserError

MOST = (
    8  # GPUs of one machine, which NVLink connects; the network between machines is not planned for
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as XLA describes it to its compiler.

    Attributes:
      name: what CUDA calls the device.
      capability: major number of the compute capability; the minor one is 0.
      cores: streaming multiprocessors.
      arithmetic_units: float32 units of one of them.
      shared_memory: bytes of one of them; a block may ask for all but the last KiB.
      cache: bytes of the L2 cache.
      clock: GHz.
      device_memory: bytes that the driver reports.
      flops, memory_bandwidth, link_bandwidth: as in `Chip`.
    """

    name: str
    capability: int
    cores: int
    arithmetic_units: int
    shared_memory: int
    cache: int
    clock: float
    device_memory: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float

    @property
    def chip(self) -> Chip:
        """The memory that a plan compares with: 90 % of all, of which JAX takes 75 % by default.

        The 90 % are those of NVIDIA's own JAX recipes (JAX-Toolbox, XLA_PYTHON_CLIENT_MEM_FRACTION); the
        rest is for the CUDA context and the libraries. The 75 % are in JAX's page on GPU memory.
        """
        return Chip(
            name=self.name,
            flops=self.flops,
            memory=int(0.9 * self.device_memory),
            memory_bandwidth=self.memory_bandwidth,
            link_bandwidth=self.link_bandwidth,
            default_memory=int(0.75 * self.device_memory),
        )


# Peak bf16 without sparsity, memory bandwidth and half of NVLink's bidirectional bandwidth are those of
# NVIDIA's data sheets of the SXM cards ("A100 80GB", "H100", "H200"). The other figures are those in XLA's
# descriptions of the cards (github.com/openxla/xla, xla/backends/gpu/target_config/specs/a100_sxm_80.txtpb,
# h100_sxm.txtpb, h200.txtpb). H200's memory is what PyTorch's messages report of such cards, 139.80 GiB; the
# description there has the nominal size.
GPUS = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB",
        capability=8, cores=108, arithmetic_units=64, shared_memory=164 * 1024, cache=40 * 2**20, clock=1.41,
        device_memory=85_100_068_864, flops=312e12, memory_bandwidth=2.039e12, link_bandwidth=300e9,
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3",
        capability=9, cores=132, arithmetic_units=128, shared_memory=228 * 1024, cache=50 * 2**20, clock=1.98,
        device_memory=84_942_979_072, flops=989e12, memory_bandwidth=3.35e12, link_bandwidth=450e9,
    ),
    "h200": Gpu(
        "NVIDIA H200",
        capability=9, cores=132, arithmetic_units=128, shared_memory=228 * 1024, cache=50 * 2**20, clock=1.98,
        device_memory=int(139.8 * GIB), flops=989e12, memory_bandwidth=4.8e12, link_bandwidth=450e9,
    ),
}  # fmt: skip


def devices(kind: str, count: int) -> Sequence[jax.Device]:
    """GPUs of one machine to compile for, which need not be attached.

    Args:
      kind: key of `GPUS`.
      count: 1 to `MOST`.

    Raises:
      UserError: JAX's CUDA plugin is not installed.
    """
    if not is_installed():
        raise UserError(
            "compiling for a GPU needs JAX's CUDA plugin: pip install 'fqs_jax[plan-gpu]' (or try "
            "--topology=cpu:8, which needs nothing)"
        )
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # nothing is run, whatever is attached
    try:
        return topologies.get_topology_desc(
            platform="cuda", target_config=description(GPUS[kind]), topology=f"1x1x{count}"
        ).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={kind}:{count}: {reason}; does the CUDA plugin have the version of jax, "
            f"{jax.__version__}?"
        ) from error


def description(gpu: Gpu) -> str:
    """The text form of XLA's GpuTargetConfigProto, which stands in for a card that is not there.

    Limits that are those of every card since 2020 are written here. The versions are those that the
    programs of JAX's CUDA 13 plugin are made for.
    """
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {gpu.shared_memory - 1024}
  shared_memory_per_core: {gpu.shared_memory}
  core_count: {gpu.cores} fpus_per_core: {gpu.arithmetic_units} clock_rate_ghz: {gpu.clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {gpu.memory_bandwidth:.0f} l2_cache_size: {gpu.cache}
  device_memory_size: {gpu.device_memory}
  cuda_compute_capability {{ major: {gpu.capability} }}
}}
runtime_version {{ major: 13 }}
dnn_version_info {{ major: 9 minor: 10 }}
platform_name: "CUDA"
device_description_str: "{gpu.name}"
"""


def is_installed(module: str = "jax_plugins.xla_cuda13") -> bool:
    """True if a module can be found; by default JAX's CUDA plugin."""
    with contextlib.suppress(ModuleNotFoundError):  # a parent package is missing
        return importlib.util.find_spec(module) is not None
    return False
