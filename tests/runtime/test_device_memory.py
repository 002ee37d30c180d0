"""What devices have and what programs need, on machines made of files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fqs_jax.runtime import device_memory, sharding

MEMINFO = "MemTotal: 900 kB\nMemAvailable:   500 kB\nSwapFree: 20 kB\nHugePages_Total: 0\n"


def cpu(devices: int = 1) -> Any:
    client = SimpleNamespace(local_devices=lambda: [None] * devices)
    return SimpleNamespace(platform="cpu", client=client)


def make_machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_cpu_has_what_the_system_can_give_out(tmp_path: Path) -> None:
    root = make_machine(tmp_path, {"proc/meminfo": MEMINFO})
    assert device_memory.free(cpu(), root) == 520 * 1024
    assert device_memory.free(cpu(devices=8), root) == 65 * 1024
    assert device_memory.free(cpu(), tmp_path / "elsewhere") is None
    (root / "proc/meminfo").write_text("MemTotal: 900 kB\n")  # an old kernel
    assert device_memory.free(cpu(), root) is None


def test_this_machine_has_some() -> None:
    free = device_memory.free(jax.local_devices()[0])
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(
    "files, left",
    [
        # Version 2: an outer group is tighter than the own one; files in its cache can go.
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
          "sys/fs/cgroup/a/b/memory.current": "7\n", "sys/fs/cgroup/a/memory.max": "90000\n",
          "sys/fs/cgroup/a/memory.current": "50000\n",
          "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 1000\n"}, 41_000),
        # A container that sees its group at the root, under a name from outside.
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/memory.max": "100\n",
          "sys/fs/cgroup/memory.current": "130\n"}, 0),
        # Version 1 beside other controllers.
        ({"proc/self/cgroup": "3:cpu,memory:/j\n2:pids:/j\n",
          "sys/fs/cgroup/memory/j/memory.limit_in_bytes": "9000",
          "sys/fs/cgroup/memory/j/memory.usage_in_bytes": "4000",
          "sys/fs/cgroup/memory/j/memory.stat": "total_inactive_file 100\n"}, 5_100),
        # No limit: what the system has counts.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.stat": ""}, 520 * 1024),
    ],
)  # fmt: skip
def test_a_control_group_leaves_less(tmp_path: Path, files: dict[str, str], left: int) -> None:
    root = make_machine(tmp_path, files | {"proc/meminfo": MEMINFO})
    assert device_memory.free(cpu(), root) == left


def test_an_accelerator_reports_its_own() -> None:
    def device(stats: dict[str, int] | None) -> Any:
        return SimpleNamespace(platform="gpu", memory_stats=lambda: stats)

    assert device_memory.free(device({"bytes_limit": 80, "bytes_in_use": 30})) == 50
    assert device_memory.free(device(None)) is None


def test_arrays_count_as_one_device_holds_them() -> None:
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2}, jax.devices()[:8])
    rows = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=sharding.rows((8, 3), mesh))
    whole = jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=sharding.replicated(mesh))
    assert device_memory.of_arrays({"a": rows, "b": whole}) == 8 * 3 * 4 // 4 + 5 * 2


def test_memory_of_a_compiled_program() -> None:
    def square(x: jax.Array) -> jax.Array:
        return x @ x

    program = jax.jit(square).lower(jnp.zeros((16, 16))).compile()
    found = device_memory.of_program(program, "cpu")
    assert found is not None
    assert (found.arguments, found.outputs, found.aliased) == (1024, 1024, 0)
    assert found.peak == 2048 + found.temporaries + found.code


def test_the_errors_of_short_memory() -> None:
    error = jax.errors.JaxRuntimeError
    assert device_memory.is_exhausted(error("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))
    assert device_memory.is_exhausted(MemoryError())
    assert not device_memory.is_exhausted(error("INTERNAL: it broke"))
    # Of a library that writes files.
    assert not device_memory.is_exhausted(ValueError("RESOURCE_EXHAUSTED: No space left on device"))
