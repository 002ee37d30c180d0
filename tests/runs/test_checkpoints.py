"""Checkpoints: bit-identical, newest first, whole or absent."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.runs import damage
from fqs_jax.runs.checkpoints import Checkpoints
from fqs_jax.runs.folders import appears, latest_step
from fqs_jax.runtime.errors import UserError
from tests.tiny_states import (
    abstract,
    abstract_state,
    assert_newest,
    assert_same,
    save_steps,
    state_at,
)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 3, 6 and 9, of which two are kept."""
    return save_steps(tmp_path / "c", 3, 6, 9)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_what_is_saved_comes_back(folder):
    params, optimizer = state_at(9)
    with Checkpoints(folder) as saved:
        assert latest_step(folder) == 9
        restored = saved.restore(9, abstract(params), abstract(optimizer))
        assert_same(restored[:2], (params, optimizer))
        assert restored[2] == {"steps": 9}
        assert_same(saved.restore_params(6, abstract(params))[0], state_at(6)[0])


def test_the_newest_is_found(folder, tmp_path, capfd):
    assert_newest(folder, 9)
    with Checkpoints(tmp_path / "nothing") as saved:
        assert saved.newest(*abstract_state()) is None
    assert not (tmp_path / "nothing").exists()
    assert capfd.readouterr() == ("", "")


def test_only_the_newest_stay(folder):
    assert names(folder) == ["6", "9"]
    with Checkpoints(folder, keep=1) as saved:
        saved.save(12, *state_at(12), {"steps": 12})
    assert names(folder) == ["12"]


def test_an_older_one_goes_as_soon_as_a_newer_one_is_whole(folder):
    with Checkpoints(folder) as saved:
        saved.save(12, *state_at(12), {"steps": 12})
        while "6" in names(folder):
            saved.check()
        assert latest_step(folder) == 12
    assert names(folder) == ["12", "9"]


def test_latest_step_counts_whole_checkpoints_only(folder, tmp_path):
    assert latest_step(folder) == 9
    (folder / "12.orbax-checkpoint-tmp").mkdir()
    (folder / "13").write_text("a file")
    (folder / "damaged_14").mkdir()
    (folder / "deleted_15").mkdir()
    assert latest_step(folder) == 9
    assert latest_step(tmp_path / "nothing") is None
    (tmp_path / "empty").mkdir()
    assert latest_step(tmp_path / "empty") is None


def test_a_folder_may_show_late(tmp_path):
    assert appears(tmp_path, seconds=0)
    assert not appears(tmp_path / "9", seconds=0)
    later = threading.Timer(0.3, (tmp_path / "9").mkdir)
    later.start()
    assert appears(tmp_path / "9", seconds=60)
    later.join()


def test_saving_a_step_again_changes_nothing(folder):
    with Checkpoints(folder) as saved:
        saved.save(9, *state_at(1), {})
    assert_newest(folder, 9)


def test_an_earlier_step_is_not_saved_behind_a_later_one(folder):
    with Checkpoints(folder) as saved, pytest.raises(UserError, match="a step after 4 already"):
        saved.save(4, *state_at(4), {})


def test_arrays_may_be_donated_once_save_returns(tmp_path):
    """A save is not overwritten while it is written, although XLA reuses donated buffers at once."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    shapes = {"big": (512, 512), "row": (1, 700), "small": (3,), "scalar": ()}
    with Checkpoints(tmp_path / "c") as saved:
        for number in range(1, 4):
            params = {name: jnp.full(shape, 100.0 * number) for name, shape in shapes.items()}
            wanted = abstract(params)
            compiled = step.lower(params).compile()
            saved.save(number, params, {"count": jnp.zeros(())}, {})
            for _ in range(20):
                params = compiled(params)
            restored, _ = saved.restore_params(number, wanted)
            assert {float(v) for x in restored.values() for v in np.unique(x)} == {100.0 * number}


@pytest.mark.parametrize("shape", [(8, 15), (4, 32)])
def test_other_shapes_do_not_fit(folder, shape):
    params, optimizer = abstract_state()
    params["lm"]["w"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    with Checkpoints(folder) as saved:
        for restore in (
            lambda: saved.restore_params(9, params),
            lambda: saved.newest(params, optimizer),
        ):
            with pytest.raises(UserError, match="cannot restore step 9 of") as refused:
                restore()
            message = str(refused.value)
            assert (
                f"params/lm/w has shape (8, 16) in the checkpoint, but {shape} is expected"
                in message
            )
            assert "\n" not in message
    assert names(folder) == ["6", "9"]


def test_another_tree_does_not_fit(folder):
    params, optimizer = abstract_state()
    del params["thought"]
    with Checkpoints(folder) as saved:
        with pytest.raises(
            UserError, match="params/thought/start is in the checkpoint, but not expected"
        ):
            saved.newest(params, optimizer)
        params["thought"] = {"end": jax.ShapeDtypeStruct((2,), jnp.float32)}
        with pytest.raises(UserError, match="cannot restore step 9 of") as refused:
            saved.restore_params(9, params)
        assert "\n" not in str(refused.value)
    assert names(folder) == ["6", "9"]


def test_other_types_are_converted_after_the_comparison(folder):
    params, optimizer = abstract_state()
    params["lm"]["w"] = jax.ShapeDtypeStruct(
        (8, 16), jnp.bfloat16, sharding=params["lm"]["w"].sharding
    )
    expected = state_at(9)[0]
    expected["lm"]["w"] = expected["lm"]["w"].astype(jnp.bfloat16)
    with Checkpoints(folder) as saved:
        assert_same(saved.restore_params(9, params)[0], expected)
        assert_same(saved.newest(params, optimizer)[1], expected)


def test_a_step_that_is_not_there_is_one_line(folder):
    with Checkpoints(folder) as saved, pytest.raises(UserError, match="cannot restore step 7"):
        saved.restore_params(7, abstract_state()[0])


def test_a_record_that_lost_one_of_its_keys_is_damaged():
    record = damage.record({"steps": 1}, {"params": {"w": jnp.ones(3)}})
    assert damage.open_record(record)[0] == {"steps": 1}
    with pytest.raises(damage.Damaged):
        damage.open_record({"steps": 1})
    for key in record:
        changed = {("x" if name == key else name): value for name, value in record.items()}
        with pytest.raises(damage.Damaged):
            damage.open_record(changed)
