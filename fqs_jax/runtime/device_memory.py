"""Memory: what a compiled program needs of a device, and what the device has."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a compiled program on one device, in bytes.

    Attributes:
      arguments: inputs of the program.
      temporaries: all intermediate arrays, though they do not all exist at once.
      outputs: results, including the aliased ones.
      aliased: results that reuse the memory of donated arguments.
      code: the program itself.
      peak: largest amount in use at any moment. The TPU compiler reports it. CPUs and GPUs allocate all
        temporaries as one block, which the CPU compiler leaves out of its peak; there it is the sum of
        the parts.
    """

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    code: int
    peak: int


def of_program(program: Any, platform: str) -> Memory | None:
    """Memory of a compiled program on one device; None if the device's compiler does not say.

    Args:
      program: `jax.stages.Compiled`.
      platform: platform of the device, such as "tpu" or "cpu".
    """
    stats = program.memory_analysis()
    if stats is None:
        return None
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    total = sum(parts.values()) - 2 * parts["aliased"]
    return Memory(**parts, peak=stats.peak_memory_in_bytes if platform == "tpu" else total)


def of_arrays(tree: Any) -> int:
    """Bytes that one device holds of arrays, or of shapes with a sharding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def free(device: jax.Device, root: Path = Path("/")) -> int | None:
    """Bytes that can still be allocated on a device; None if nobody says.

    A GPU or TPU reports it. CPU devices share what the system can give out, at most what the process's
    control groups have left.

    Args:
      root: where /proc and /sys are.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    rooms = [room for room in (_of_system(root), *_of_groups(root)) if room is not None]
    return min(rooms) // len(device.client.local_devices()) if rooms else None


def is_exhausted(error: BaseException) -> bool:
    """True for the errors that report that the memory of a device, or of this machine, ran out."""
    of_device = isinstance(error, jax.errors.JaxRuntimeError)
    return isinstance(error, MemoryError) or (of_device and "RESOURCE_EXHAUSTED" in str(error))


def _of_system(root: Path) -> int | None:
    """Available memory and free swap of Linux; None elsewhere."""
    with contextlib.suppress(OSError, ValueError, LookupError):
        lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        sizes = {words[0]: 1024 * int(words[1]) for words in lines if len(words) > 1}
        return sizes["MemAvailable:"] + sizes.get("SwapFree:", 0)
    return None


def _of_groups(root: Path) -> list[int | None]:
    """The memory that each control group around this process has left, v1 and v2; None without a limit.

    Cached files, which the kernel gives up first, count as left.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0":
            base, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / name.lstrip("/")
        # In a container the group's own name may lie outside what is mounted.
        groups = [folder, *folder.parents] if folder.is_dir() else [base]
        found += [_left(group, *files) for group in groups if group.is_relative_to(base)]
    return found


def _left(group: Path, limit: str, usage: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        most, used = (int((group / name).read_text()) for name in (limit, usage))
        cached = 0
        with contextlib.suppress(OSError, ValueError):
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return max(0, most - used + cached)
    return None
