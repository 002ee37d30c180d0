"""Meshes: the same loss and gradients on any of them, and nothing whole that should be cut."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from configs import common
from fqs_jax.curriculum import objective as objective_lib
from fqs_jax.curriculum import resolve, row
from fqs_jax.model import placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.training import optimizer, step

MODEL = ModelConfig(
    vocab_size=32,
    width=16,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=24,
    vocab_chunk=24,
    qkv_bias=True,
)
STAGES = {"quiet_star": 1, "ntp": 4, "next_token": 5, "distill": 6}
Sizes = tuple[int, int, int]


def make_mesh(sizes: Sizes) -> jax.sharding.Mesh:
    devices = jax.devices()[: int(np.prod(sizes))]
    return sharding.make_mesh(dict(zip(sharding.MESH_AXES, sizes, strict=True)), devices)


def make_config(batch_size: int = 8, **changes: Any) -> ml_collections.ConfigDict:
    c = common.get_config()
    c.batch_size, c.data.seq_len = batch_size, 12
    c.compute.dtype = "float32"
    c.quiet_star.policy_weight = c.ntp.policy_weight = 10.0
    c.thought.mixing = "probability"
    c.stage_1.n_ahead, c.stage_1.n_ahead_talk = 5, 2
    c.stage_5 = row("plain", "next_token", steps=3)
    c.stage_6 = row("taught", "distill", teacher=1, steps=3)
    c.distill.form, c.distill.top_k, c.distill.weighting = "policy", 3, "shift"
    c.distill.label_weight = 0.2
    c.update_from_flattened_dict(changes)
    return c


def random_state(program: step.Program, transform: Any) -> step.State:
    """Parameters at which nothing is trivial, the same on every mesh, placed as the program says."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        scale = path[-1].key == "scale"
        values = rng.uniform(0.5, 1.5, leaf.shape) if scale else rng.normal(0, 0.4, leaf.shape)
        return values.astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, program.state.params)
    state = step.State(params, transform.init(jax.tree.map(jnp.asarray, params)))
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, program.state))


def random_batch(config: ml_collections.ConfigDict, teacher: bool) -> dict[str, np.ndarray]:
    """Padded rows of one or two documents."""
    rng = np.random.default_rng(1)
    B, T = config.batch_size, config.data.seq_len
    index_T = np.arange(T)
    mask = index_T < rng.integers(4, T + 1, (B, 1))
    second = index_T >= rng.integers(2, 10, (B, 1))
    batch = {
        "tokens": rng.integers(0, MODEL.vocab_size, (B, T)).astype(np.int32),
        "mask": mask,
        "segment": np.where(mask, 1 + second, 0).astype(np.int32),
    }
    if teacher:
        batch["teacher_log_prob"] = rng.normal(-3, 1, (B, T - 1)).astype(np.float32)
        batch["teacher_log_probs"] = np.log(rng.dirichlet(np.ones(4), (B, T))[..., :3], dtype="f4")
        batch["teacher_ids"] = (rng.integers(0, 10, (B, T, 3)) + [0, 10, 20]).astype(np.int32)
        batch["teacher_shift"] = rng.uniform(0, 1, (B, T)).astype(np.float32)
    return batch


def take_step(
    sizes: Sizes, objective: str, config: ml_collections.ConfigDict
) -> tuple[step.Program, step.State, dict[str, Any]]:
    """One step on a mesh: the program, the new state (as placed) and the metrics."""
    mesh = make_mesh(sizes)
    recipe = resolve.find(resolve.recipes(config, MODEL), str(STAGES[objective]))
    stage = recipe.stage
    program = step.program(recipe, mesh, ("segment",))
    transform = optimizer.make(recipe.optimizer, stage.learning_rate, stage.steps)
    batch = random_batch(config, objective_lib.of(stage).has_teacher)
    with jax.set_mesh(mesh):
        placed = {
            name: jax.device_put(batch[name], leaf.sharding) for name, leaf in program.batch.items()
        }
        state, metrics = program.step(random_state(program, transform), placed, np.int32(3))
    return program, state, jax.tree.map(np.asarray, metrics)


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Equal to a part of each leaf's largest value."""
    chex.assert_trees_all_equal_structs(ours, theirs)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        worst = np.max(np.abs(a - b), initial=0)
        assert worst <= tolerance * (np.max(np.abs(b), initial=0) + 1e-9), (path, worst)


def moments(state: step.State) -> Any:
    """Adam's first moments: after one step, the clipped gradient times 1 - beta1."""
    return state.optimizer.inner_state[1].mu


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The step of each objective on one device."""
    return {name: take_step((1, 1, 1), name, make_config()) for name in STAGES}


ALL_AXES = (2, 2, 2)
MESHES = [(8, 1, 1), (1, 8, 1), ALL_AXES]


# The step that thinks, which has all there is in the others, on every mesh.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "objective"),
    [(sizes, "quiet_star") for sizes in MESHES]
    + [(sizes, name) for sizes in ((1, 8, 1), ALL_AXES) for name in STAGES if name != "quiet_star"],
)
def test_any_mesh_gives_the_loss_and_gradients_of_one_device(
    alone: dict[str, Any], objective: str, sizes: Sizes
) -> None:
    _, one, one_metrics = alone[objective]
    program, state, metrics = take_step(sizes, objective, make_config())
    assert program.row_groups == sizes[0] * sizes[1]
    assert_close(metrics, one_metrics)
    assert_close(moments(state), moments(one))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(moments(one)))
    assert_placed_as_the_table_says(state, sizes)


def assert_placed_as_the_table_says(state: step.State, sizes: Sizes) -> None:
    """Worked out apart from runtime/sharding.py: which axes of which leaf are cut into how many pieces."""
    _, fsdp, tensor = sizes
    kv = tensor if MODEL.num_kv_heads % tensor == 0 else 1
    cuts = {
        "embed/embedding": (tensor, fsdp),
        "q/kernel": (1, fsdp, tensor, 1),
        "k/kernel": (1, fsdp, kv, 1),
        "v/kernel": (1, fsdp, kv, 1),
        "o/kernel": (1, tensor, 1, fsdp),
        "q/bias": (1, tensor, 1),
        "k/bias": (1, kv, 1),
        "v/bias": (1, kv, 1),
        "gate/kernel": (1, fsdp, tensor),
        "up/kernel": (1, fsdp, tensor),
        "down/kernel": (1, tensor, fsdp),
        "head/kernel": (fsdp, tensor),
        "hidden_1/kernel": (1, fsdp),
        "hidden_2/kernel": (fsdp, 1),
        "out/kernel": (fsdp, 1),
    }
    for tree in (state.params, moments(state), state.optimizer.inner_state[1].nu):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = "/".join(entry.key for entry in path[-2:])
            expected = cuts.get(name, (1,) * leaf.ndim)
            assert leaf.ndim <= 2 or name in cuts, name
            shard = leaf.addressable_shards[0].data.shape
            assert tuple(np.array(leaf.shape) // shard) == expected, (name, shard)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "objective"),
    [((1, 1, 1), "distill"), ((2, 1, 1), "quiet_star"), ((2, 1, 1), "ntp")],
)
def test_microbatches_give_the_gradients_of_the_whole_batch(
    alone: dict[str, Any], objective: str, sizes: Sizes
) -> None:
    """Rows have different lengths: means of the parts' means would be another loss, other metrics."""
    _, one, one_metrics = alone[objective]
    _, state, metrics = take_step(sizes, objective, make_config(microbatches=4))
    assert_close(metrics, one_metrics, 3e-5)
    assert_close(moments(state), moments(one))


@pytest.mark.slow
# 4 rows: rationales are rows of their own.
@pytest.mark.parametrize(
    ("batch_size", "fraction"), [pytest.param(8, 1.0, marks=pytest.mark.exhaustive), (4, 0.5)]
)
def test_positions_in_chunks_on_a_mesh(batch_size: int, fraction: float) -> None:
    """Chunks of 5 of 12 or 6 positions; all at once on one device is what they must equal."""
    changes = {
        "compute.position_chunk": 5,
        "compute.remat": "elementwise",
        "thought.position_fraction": fraction,
        "thought.positions": "high_entropy",
    }
    whole = make_config(batch_size, **changes | {"compute.position_chunk": 0})
    _, one, one_metrics = take_step((1, 1, 1), "quiet_star", whole)
    sizes = (2, 2, 2) if batch_size == 8 else (4, 2, 1)
    program, state, metrics = take_step(sizes, "quiet_star", make_config(batch_size, **changes))
    assert program.row_groups == sizes[0] * sizes[1]
    # Rationales that are rows sum in another order.
    tolerance = 1e-5 if batch_size == 8 else 3e-5
    assert_close(metrics, one_metrics, tolerance)
    assert_close(moments(state), moments(one), tolerance)
    assert_placed_as_the_table_says(state, sizes)


@pytest.mark.slow
def test_rationales_share_the_devices_that_rows_leave_idle() -> None:
    """4 rows on 8 devices: the 2 rationales of each become rows; thoughts and gradients stay."""
    config = make_config(batch_size=4)
    _, one, one_metrics = take_step((1, 1, 1), "quiet_star", config)
    program, state, metrics = take_step((2, 4, 1), "quiet_star", config)
    assert program.row_groups == 8
    assert_close(metrics, one_metrics, 3e-5)
    assert_close(moments(state), moments(one), 3e-5)


# How rows are divided --------------------


def split(config: ml_collections.ConfigDict, objective: str, sizes: Sizes) -> tuple[bool, int]:
    recipe = resolve.find(resolve.recipes(config, MODEL), str(STAGES[objective]))
    return step.split_rows(recipe, make_mesh(sizes))


def test_how_rows_are_dealt_out() -> None:
    assert split(make_config(8), "quiet_star", (2, 4, 1)) == (False, 8)
    assert split(make_config(4), "quiet_star", (2, 4, 1)) == (True, 8)
    assert split(make_config(4), "ntp", (2, 4, 1)) == (
        False,
        4,
    )  # halves of the devices do the same
    assert split(make_config(8, microbatches=4), "quiet_star", (1, 4, 1)) == (True, 4)
    assert split(make_config(1), "next_token", (1, 1, 8)) == (False, 1)


def test_rows_that_cannot_be_dealt_out_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 row\(s\) of 2 rationales a step cannot be divided"):
        split(make_config(3), "quiet_star", (1, 8, 1))
    with pytest.raises(UserError, match="--config.mesh.data=2 divides them among 4"):
        split(make_config(4), "ntp", (1, 8, 1))
    with pytest.raises(UserError, match="batch_size 8 is no multiple of microbatches 3"):
        split(make_config(8, microbatches=3), "quiet_star", (1, 8, 1))


# The table --------------------


def test_every_parameter_has_axes_of_its_sizes() -> None:
    sizes = {"L": 2, "V": 32, "D": 16, "N": 8, "G": 2, "H": 4, "F": 24}
    params = objective_lib.abstract_params(MODEL, resolve.recipes(make_config(), MODEL)[0].thought)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        letters = placement.of_leaf(path)
        assert letters is not None and len(letters) == leaf.ndim, path
        for letter, size in zip(letters, leaf.shape, strict=True):
            assert letter == "." or sizes[letter] == size, path


@pytest.mark.parametrize(
    ("letters", "shape", "expected"),
    [
        ("L D N H", (2, 16, 8, 4), P(None, "fsdp", "tensor", None)),
        ("B . V", (8, 3, 32), P(("data", "fsdp"), None, "tensor")),
        ("B . D", (8, 3, 16), P(("data", "fsdp"), None, None)),  # rows have taken fsdp
        ("B .", (2, 3), P("fsdp", None)),
        ("B .", (3, 3), P(None, None)),
        ("D D", (16, 16), P("fsdp", None)),
        ("L G H", (2, 1, 4), P(None, None, None)),  # one kv head: whole everywhere
    ],
)
def test_the_table(letters: str, shape: tuple[int, ...], expected: P) -> None:
    assert sharding.spec(letters.split(), shape, make_mesh((2, 2, 2))) == expected


@given(
    st.lists(st.tuples(st.sampled_from("BDNGFVLHT."), st.integers(1, 16)), min_size=1, max_size=6)
)
def test_a_spec_always_fits(axes_and_sizes: list[tuple[str, int]]) -> None:
    """No mesh axis twice, and every cut axis divided."""
    mesh = make_mesh((2, 2, 2))
    letters, shape = zip(*axes_and_sizes, strict=True)
    spec = sharding.spec(letters, shape, mesh)
    names = [n for entry in spec if entry for n in ([entry] if isinstance(entry, str) else entry)]
    assert len(names) == len(set(names))
    jax.sharding.NamedSharding(mesh, spec).shard_shape(shape)  # raises if it does not fit


def test_meshes_fill_what_is_left() -> None:
    sizes = {"data": 2, "fsdp": -1, "tensor": 2}
    assert dict(sharding.make_mesh(sizes).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, -1, 1), r"mesh.data=3, mesh.fsdp=-1, mesh.tensor=1 do not make up 8 cpu device"),
        ((1, 1, 1), "their product must be that number"),
        ((-1, -1, 1), "one may be -1"),
        ((0, 8, 1), "each must be at least 1"),
    ],
)
def test_impossible_meshes(sizes: Sizes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(dict(zip(sharding.MESH_AXES, sizes, strict=True)))


def test_a_mesh_that_does_not_divide_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="mesh.tensor=8 does not divide the model's mlp_dim 20; 4"):
        placement.check_model(dataclasses.replace(MODEL, mlp_dim=20), make_mesh((1, 1, 8)))
    with pytest.raises(UserError, match="mesh.fsdp=8 does not divide the model's width 12; 4 does"):
        placement.check_model(dataclasses.replace(MODEL, width=12), make_mesh((1, 8, 1)))
    placement.check_model(MODEL, make_mesh((1, 1, 8)))  # 2 kv heads are whole


@given(st.integers(1, 24))
def test_rows_of_a_process_come_back_where_they_belong(num_rows: int) -> None:
    mesh = make_mesh((2, 4, 1))
    values = np.arange(num_rows * 3).reshape(num_rows, 3)
    where = sharding.rows(values.shape, mesh)
    leaf = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=where)
    rows = sharding.local_rows(leaf)
    made = sharding.from_local_rows(values[rows], rows, leaf)
    np.testing.assert_array_equal(made, values)
    assert made.sharding == where


def test_a_number_on_every_device_moves_nowhere():
    """A program of the whole mesh takes it where transfers between devices are refused."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    number = sharding.replicate(np.asarray(7, np.int32), mesh)
    assert number.sharding == sharding.replicated(mesh) and number.dtype == np.int32
    with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        doubled = jax.jit(lambda x: x * 2)(number)
    assert [int(shard.data) for shard in doubled.addressable_shards] == [14] * 8
