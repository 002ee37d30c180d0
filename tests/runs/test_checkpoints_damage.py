"""Damaged checkpoints: the one before is used, or none; never wrong numbers."""

import re
import shutil

import numpy as np
import pytest

from fqs_jax.runs import verifying
from fqs_jax.runs.checkpoints import Checkpoints
from fqs_jax.runs.damage import Damaged
from fqs_jax.runs.folders import latest_step
from fqs_jax.runtime.errors import UserError
from tests.tiny_states import abstract_state, assert_newest, assert_same, save_steps, state_at


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_steps(tmp_path_factory.mktemp("whole") / "c", 6, 9)


@pytest.fixture
def folder(whole, tmp_path):
    """Checkpoints of steps 6 and 9, to be damaged."""
    return shutil.copytree(whole, tmp_path / "c")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, place, bits=1):
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def cut_all(step):
    for path in files(step):
        path.write_bytes(path.read_bytes()[:10])


def cut_arrays(step):
    """The worst that a full disk leaves: everything exists but the numbers."""
    for path in files(step / "params"):
        if path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])


def lose_shards(step):
    shutil.rmtree(step / "params" / "d")
    shutil.rmtree(step / "params" / "ocdbt.process_0" / "d")


def lose_params(step):
    shutil.rmtree(step / "params")


def lose_optimizer(step):
    shutil.rmtree(step / "optimizer")


def lose_progress(step):
    shutil.rmtree(step / "progress")


def lose_files(step):
    for path in files(step):
        path.unlink()


def change_progress(step):
    (path,) = (p for p in files(step / "progress") if p.name == "metadata")
    text = path.read_text()
    assert '"steps": 9' in text
    path.write_text(text.replace('"steps": 9', '"steps": 8'))


def swap_params(step):
    """Whole, but of another step."""
    shutil.rmtree(step / "params")
    shutil.copytree(step.parent / "6" / "params", step / "params")


HARMS = [
    *(cut_all, cut_arrays, lose_shards, lose_params, lose_optimizer, lose_progress, lose_files),
    *(change_progress, swap_params),
]


@pytest.mark.parametrize("harm", HARMS)
def test_the_one_before_is_used(folder, harm, capfd):
    harm(folder / "9")
    assert_newest(folder, 6)
    out, err = capfd.readouterr()
    line = (
        rf"checkpoint {folder}/9 is damaged: .+; it is now damaged_9, and step 6 is used instead\n"
    )
    assert out == "" and re.fullmatch(line, err), err
    assert sorted(p.name for p in folder.iterdir()) == ["6", "damaged_9"]
    assert_newest(folder, 6)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("harm", HARMS)
def test_verifying_finds_it_and_changes_nothing(folder, harm):
    harm(folder / "9")
    before = sorted(folder.rglob("*"))
    with pytest.raises(Damaged) as found:
        verify(folder / "9")
    assert "\n" not in str(found.value)
    verify(folder / "6")
    assert sorted(folder.rglob("*")) == before


def verify(step):
    verifying.check_arrays(step, verifying.described_arrays(step), lambda count: None)


def test_training_goes_on_after_the_fall_back(folder):
    """The damaged step is saved anew, and may be damaged anew."""
    for name in ("damaged_9", "damaged_9_2", "damaged_9_3"):
        cut_arrays(folder / "9")
        with Checkpoints(folder) as saved:
            step, params, optimizer, _ = saved.newest(*abstract_state())
            assert step == 6 and (folder / name).is_dir()
            assert_same((params, optimizer), state_at(6))
            saved.save(9, *state_at(9), {"steps": 9})
        assert_newest(folder, 9)


def test_two_newer_ones_are_damaged(folder, capfd):
    save_steps(folder, 12, keep=3)
    cut_arrays(folder / "9")
    lose_progress(folder / "12")
    assert_newest(folder, 6)
    first, second = capfd.readouterr().err.splitlines()
    assert f"{folder}/12 is damaged" in first and "step 6 is used instead" in first
    assert f"{folder}/9 is damaged" in second and "step 6 is used instead" in second


def test_nothing_is_moved_if_all_are_damaged(folder, capfd):
    cut_arrays(folder / "6")
    lose_params(folder / "9")
    with Checkpoints(folder) as saved, pytest.raises(UserError) as refused:
        saved.newest(*abstract_state())
    message = str(refused.value)
    assert (
        message.startswith(f"every checkpoint in {folder} is damaged: 9 (") and ", 6 (" in message
    )
    assert "remove that folder to begin the stage again" in message and "\n" not in message
    assert sorted(p.name for p in folder.iterdir()) == ["6", "9"]
    assert capfd.readouterr() == ("", "")


def test_half_written_ones_are_passed_over_and_removed(folder, capfd):
    shutil.copytree(folder / "9", folder / "12.orbax-checkpoint-tmp")
    (folder / "deleted_3" / "params").mkdir(parents=True)
    assert_newest(folder, 9)
    with Checkpoints(folder) as saved:
        saved.save(12, *state_at(12), {"steps": 12})
    assert_newest(folder, 12)
    assert sorted(p.name for p in folder.iterdir()) == ["12", "9"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("harm", HARMS)
def test_a_given_step_is_refused_in_one_line(folder, harm, capfd):
    harm(folder / "9")
    with Checkpoints(folder) as saved, pytest.raises(UserError) as refused:
        saved.restore(9, *abstract_state())
    message = str(refused.value)
    assert message.startswith(f"cannot restore step 9 of {folder}: ") and "\n" not in message
    assert "train that stage again to resume from the checkpoint before it" in message
    assert latest_step(folder) == 9 and capfd.readouterr() == ("", "")


def test_a_damaged_one_that_cannot_be_moved(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    cut_arrays(folder / "9")
    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with Checkpoints(folder) as saved, pytest.raises(UserError, match="cannot rename .*denied"):
        saved.newest(*abstract_state())


def test_what_may_not_be_read_is_not_damaged(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with Checkpoints(folder) as saved:
        monkeypatch.setattr(saved._reader, "restore", refuse)
        with pytest.raises(UserError, match=r"cannot read step 9 of .*Permission denied"):
            saved.newest(*abstract_state())
    assert latest_step(folder) == 9


@pytest.mark.parametrize("places", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_harmless_or_noticed(folder, places, capfd):
    """A flip in arrays, manifests, metadata or JSON: the state is exact, or the step is refused.

    One bit is flipped at a time, in as many bytes of every file as `places` says.
    """
    rng = np.random.default_rng(0)
    exact, refused = 0, {"params": 0, "optimizer": 0, "progress": 0}
    with Checkpoints(folder) as saved:
        for path in files(folder / "9"):
            good = path.read_bytes()
            for place in rng.integers(len(good), size=places):
                flip(path, place, 1 << int(rng.integers(8)))
                try:
                    restored = saved.restore(9, *abstract_state())
                except UserError as error:
                    assert "\n" not in str(error)
                    refused[path.relative_to(folder / "9").parts[0]] += 1
                else:
                    assert_same(restored[:2], state_at(9))
                    assert restored[2] == {"steps": 9}
                    exact += 1
                path.write_bytes(good)
    assert exact > 0 and min(refused.values()) > 0, (exact, refused)
    assert capfd.readouterr() == ("", "")
