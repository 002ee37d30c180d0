"""Checkpoints: bit-identical, newest first, whole or absent."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fqs_jax.checkpoints import Checkpoints, latest_step
from fqs_jax.errors import UserError

# What Orbax leaves undone when a restore fails is noisy when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HERE = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def state_at(step):
    """Parameters of two types and an optimiser state with everything that ours has in it."""
    key = jax.random.key(step)
    params = {
        "lm": {"w": jax.random.normal(key, (3, 4)), "b": jnp.arange(4.0)},
        "thought": {"start": jax.random.normal(key, (5,)).astype(jnp.bfloat16)},
    }
    transform = optax.apply_if_finite(optax.adamw(0.1), 3)
    _, state = transform.update(params, transform.init(params), params)
    return params, state


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=HERE), tree)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 3, 6 and 9, of which two are kept."""
    with Checkpoints(tmp_path / "c", keep=2) as saved:
        for step in (3, 6, 9):
            saved.save(step, *state_at(step), {"steps": step})
    yield tmp_path / "c"
    gc.collect()  # here, where it is noise, and not in somebody else's test


def test_what_is_saved_comes_back(folder):
    params, optimizer = state_at(9)
    with Checkpoints(folder) as saved:
        assert saved.latest() == 9
        restored = saved.restore(9, abstract(params), abstract(optimizer))
        assert_same(restored[:2], (params, optimizer))
        assert jax.tree.structure(restored[1]) == jax.tree.structure(optimizer)
        assert restored[2] == {"steps": 9}
        assert_same(saved.restore_params(6, abstract(params)), state_at(6)[0])


def test_only_the_newest_stay(folder):
    assert sorted(p.name for p in folder.iterdir() if p.name.isdigit()) == ["6", "9"]


def test_latest_step_counts_whole_checkpoints_only(folder, tmp_path):
    assert latest_step(folder) == 9
    (folder / "12.orbax-checkpoint-tmp").mkdir()
    (folder / "13").write_text("a file")
    assert latest_step(folder) == 9
    assert latest_step(tmp_path / "nothing") is None
    (tmp_path / "empty").mkdir()
    assert latest_step(tmp_path / "empty") is None


def test_saving_a_step_again_changes_nothing(folder):
    with Checkpoints(folder) as saved:
        saved.save(9, *state_at(1), {})
    params, optimizer = state_at(9)
    with Checkpoints(folder) as saved:
        assert_same(saved.restore_params(9, abstract(params)), params)


def test_an_earlier_step_is_not_saved_behind_a_later_one(folder):
    with Checkpoints(folder) as saved, pytest.raises(UserError, match="a step after 4 already"):
        saved.save(4, *state_at(4), {})


def cut_all(folder):
    for path in (folder / "9" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])


def cut_arrays(folder):
    """Of what a full disk leaves, the worst: all is there but the numbers."""
    paths = [p for p in (folder / "9" / "params").rglob("*") if p.parent.name == "d"]
    assert paths
    for path in paths:
        path.write_bytes(path.read_bytes()[:10])


def lose_params(folder):
    for path in sorted((folder / "9" / "params").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("harm", [cut_all, cut_arrays, lose_params])
def test_a_damaged_checkpoint_is_one_line(folder, harm):
    harm(folder)
    with Checkpoints(folder) as saved, pytest.raises(UserError) as refused:
        saved.restore_params(9, abstract(state_at(9)[0]))
    message = str(refused.value)
    assert message.startswith(f"cannot restore step 9 of {folder}") and "\n" not in message
    assert "remove that step's folder" in message


@pytest.mark.parametrize("shape", [(3, 5), (2, 4)])
def test_other_shapes_are_one_line(folder, shape):
    params = abstract(state_at(9)[0])
    params["lm"]["w"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=HERE)
    with Checkpoints(folder) as saved, pytest.raises(UserError, match="cannot restore") as refused:
        saved.restore_params(9, params)
    assert "\n" not in str(refused.value)


def test_another_tree_is_one_line(folder):
    params = abstract(state_at(9)[0])
    del params["thought"]
    params["lm"]["more"] = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=HERE)
    with Checkpoints(folder) as saved, pytest.raises(UserError, match="cannot restore") as refused:
        saved.restore_params(9, params)
    assert "\n" not in str(refused.value)
