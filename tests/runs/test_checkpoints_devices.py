"""Checkpoints from one mesh to another: the same numbers to the bit, and nothing gathered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fqs_jax.runs import damage
from fqs_jax.runs.checkpoints import Checkpoints
from tests.runs.test_checkpoints_damage import cut_arrays
from tests.tiny_states import abstract, abstract_state, assert_newest, assert_same, state_at

DEVICES = 8

pytestmark = pytest.mark.skipif(jax.device_count() < DEVICES, reason="needs 8 (virtual) devices")


def mesh_of(rows, columns):
    devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
    return Mesh(devices, ("fsdp", "tensor"))


def sharded(tree, mesh):
    """An abstract tree, its last axis split over the mesh's first, its first over the second."""

    def place(x):
        spec = {0: P(), 1: P("fsdp"), 2: P("tensor", "fsdp")}[x.ndim]
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def put(tree, like):
    return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), tree, like)


def save(folder, step, like):
    with Checkpoints(folder, keep=3) as saved:
        saved.save(step, *put(state_at(step), like), {"steps": step})


MESHES = [(1, 1), (8, 1), (4, 2), (2, 2), (1, 8)]


@pytest.mark.parametrize("after", MESHES)
@pytest.mark.parametrize("before", [(1, 1), (8, 1), (2, 2)])
def test_any_mesh_restores_what_any_other_saved(tmp_path, before, after):
    save(tmp_path / "c", 5, sharded(state_at(5), mesh_of(*before)))
    wanted = sharded(state_at(5), mesh_of(*after))
    with Checkpoints(tmp_path / "c") as saved:
        step, params, optimizer, progress = saved.newest(*wanted)
        assert (step, progress) == (5, {"steps": 5})
        assert_same((params, optimizer), state_at(5))
        assert_same(saved.restore_params(5, wanted[0])[0], state_at(5)[0])
    for array, like in zip(*map(jax.tree.leaves, ((params, optimizer), wanted)), strict=True):
        assert array.sharding == like.sharding
    assert_newest(tmp_path / "c", 5)  # on one device, without a mesh


def test_a_damaged_one_is_noticed_on_any_mesh(tmp_path):
    folder = tmp_path / "c"
    for step in (6, 9):
        save(folder, step, sharded(state_at(0), mesh_of(8, 1)))
    cut_arrays(folder / "9")
    with Checkpoints(folder) as saved:
        assert saved.newest(*sharded(state_at(0), mesh_of(2, 2)))[0] == 6
    assert_newest(folder, 6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "bool"])
def test_fingerprints_do_not_depend_on_the_mesh(dtype):
    numbers = np.random.default_rng(0).normal(size=(8, 16, 8)) * 3
    array = jnp.asarray(numbers, dtype)
    expected = int(damage.fingerprint(array))
    for spec in (P(), P("fsdp"), P(None, "fsdp", "tensor"), P(None, None, ("fsdp", "tensor"))):
        for shape in MESHES:
            placed = jax.device_put(array, NamedSharding(mesh_of(*shape), spec))
            assert int(damage.fingerprint(placed)) == expected


@pytest.mark.parametrize("spec", [P("fsdp"), P(None, "fsdp"), P(None, "tensor", "fsdp")])
def test_a_fingerprint_moves_sums_only(spec):
    sharding = NamedSharding(mesh_of(4, 2), spec)
    leaf = jax.ShapeDtypeStruct((8, 256, 512), jnp.float32, sharding=sharding)
    compiled = damage._leaf.lower(leaf).compile()
    program = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * leaf.size * 4 / 8


def test_a_state_on_several_meshes(tmp_path):
    """Parameters on all devices, a counter on one."""
    params = put(state_at(5)[0], sharded(state_at(5)[0], mesh_of(8, 1)))
    with Checkpoints(tmp_path / "c") as saved:
        saved.save(5, params, {"count": jnp.int32(5)}, {})
        restored = saved.restore(5, *abstract((state_at(5)[0], {"count": jnp.int32(0)})))
    assert_same(restored[:2], (state_at(5)[0], {"count": jnp.int32(5)}))
    assert abstract_state()[0].keys() == restored[0].keys()
