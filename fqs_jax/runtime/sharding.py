"""The placement of arrays: one mesh with three named axes, one table from array axes to mesh axes.

    data    copies of the parameters, each with rows of its own
    fsdp    shards rows too, and the width of the parameters and the optimizer state
    tensor  shards heads, feed-forward and vocabulary

The compiler derives all other placements from those of the parameters and the batch, and from
`constrain` at a few activations; nothing else in the project mentions devices. (`pjit` is now `jax.jit`
with shardings.) The letters are those of array names: see `model/placement.py` and
docs/architecture.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fqs_jax.runtime.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Array axis -> mesh axes. The first choice is used that divides the size and is not used by an earlier
# array axis. Hence D is sharded in parameters but replicated in activations, where B already uses fsdp.
RULES: dict[str, tuple[tuple[str, ...], ...]] = {
    "B": (("data", "fsdp"), ("fsdp",), ("data",)),
    "D": (("fsdp",),),
    "N": (("tensor",),),
    "G": (("tensor",),),
    "F": (("tensor",),),
    "V": (("tensor",),),
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config's `mesh` section.

    Args:
      sizes: the number of devices along each of MESH_AXES; one may be -1, which takes the rest.
      devices: None = all devices of all processes of this run.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = [sizes[name] for name in MESH_AXES]
    text = ", ".join(f"mesh.{name}={size}" for name, size in zip(MESH_AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"{text}: each must be at least 1, and one may be -1, which takes the rest")
    rest, over = divmod(len(devices), math.prod(size for size in shape if size != -1))
    if over or (-1 not in shape and rest != 1) or rest < 1:
        raise UserError(
            f"{text} do not make up {len(devices)} {devices[0].platform} device(s); "
            "their product must be that number"
        )
    shape = [rest if size == -1 else size for size in shape]
    # Only TPUs have slices; every GPU host would count as one, and fsdp may well span GPU hosts.
    is_tpu = devices[0].platform == "tpu"
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if is_tpu else 1
    if slices > 1:
        # The network between slices is slow, so only copies of the parameters (data) span slices.
        if shape[0] % slices:
            raise UserError(f"{text}: mesh.data must be a multiple of the {slices} slices")
        places = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]),
            (slices, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    else:
        places = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(places, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def single_device() -> Mesh:
    """The mesh of one device of this process."""
    return make_mesh(dict.fromkeys(MESH_AXES, 1), jax.local_devices()[:1])


def host_memory() -> Mesh:
    """The mesh of the CPU, or of one device if JAX has no CPU backend (JAX_PLATFORMS)."""
    try:
        devices = jax.local_devices(backend="cpu")
    except RuntimeError:
        devices = jax.local_devices()
    return make_mesh(dict.fromkeys(MESH_AXES, 1), devices[:1])


def local_mesh(fsdp: int, tensor: int) -> Mesh:
    """A mesh of fsdp * tensor devices of this process.

    Raises:
      UserError: the process has fewer devices.
    """
    devices = jax.local_devices()
    if fsdp * tensor > len(devices):
        raise UserError(
            f"{fsdp * tensor} devices are requested, there are {len(devices)} here; "
            "choose a smaller --fsdp or --tensor"
        )
    return make_mesh({"data": 1, "fsdp": fsdp, "tensor": tensor}, devices[: fsdp * tensor])


def spec(axes: Sequence[str], shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The placement of one array by RULES.

    Args:
      axes: one letter per axis; "." and letters without a rule are not sharded.
      shape: its size.
      mesh: a Mesh or an AbstractMesh.
    """
    taken: set[str] = set()
    entries: list[Any] = []
    for axis, size in zip(axes, shape, strict=True):
        chosen: tuple[str, ...] = ()
        for names in RULES.get(axis, ()):
            cuts = math.prod(mesh.shape[name] for name in names)
            if cuts > 1 and size % cuts == 0 and not taken.intersection(names):
                chosen = tuple(name for name in names if mesh.shape[name] > 1)
                break
        taken.update(chosen)
        entries.append(chosen if len(chosen) > 1 else chosen[0] if chosen else None)
    return PartitionSpec(*entries)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(values: np.ndarray, mesh: Mesh) -> jax.Array:
    """The array on every device of a mesh; all processes must have the same values.

    Unlike `jax.device_put`, it does not wait for the other processes to compare them.
    """
    return jax.make_array_from_callback(values.shape, replicated(mesh), values.__getitem__)


def rows(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is B and whose other axes are not sharded."""
    return NamedSharding(mesh, spec("B" + "." * (len(shape) - 1), shape, mesh))


def local_rows(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """The indices of the rows of a placed array that this process holds, increasing."""
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    return np.unique([row for index in indices for row in range(*index[0].indices(leaf.shape[0]))])


def from_local_rows(local: np.ndarray, rows: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The global array whose rows are spread over processes.

    Args:
      local: the rows that this process holds.
      rows: their indices, from `local_rows`.
      leaf: the shape and sharding of the global array.
    """

    def piece(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(leaf.shape[0])
        first = int(np.searchsorted(rows, start))
        return local[first : first + stop - start]

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, piece)


def constrain(x: jax.Array, axes: str) -> jax.Array:
    """The same array, placed by RULES, inside a jitted function; unchanged without a mesh in scope.

    Args:
      axes: one letter per axis, separated by spaces, such as "B . V".
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes.split(), x.shape, mesh))


def row_groups(num_rows: int, mesh: Any) -> int:
    """The number of groups of devices that RULES spreads this many rows over."""
    names = spec("B", (num_rows,), mesh)[0] or ()
    return math.prod(mesh.shape[name] for name in ([names] if isinstance(names, str) else names))


def groups_of_rows(num_rows: int) -> int:
    """The `row_groups` of the mesh in scope; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else row_groups(num_rows, mesh)
