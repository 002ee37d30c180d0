"""Saves that fail: one line that says so, the checkpoint before stays, and a later save works."""

import os
import resource
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.runs.checkpoints import Checkpoints
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError
from tests.tiny_states import abstract, assert_same

SIZE = 2**21
# What others than root, who may not mount a disk, can do: no file may be longer than this.
LONGEST_FILE = 2**16


def big_state(step):
    """A state that nearly fills half of the small disk, and cannot be compressed."""
    return {"w": jax.random.bits(jax.random.key(step), (SIZE // 10,))}, {"count": jnp.int32(step)}


def save(saved, step):
    saved.save(step, *big_state(step), {"steps": step})


def assert_step(folder, step):
    with Checkpoints(folder) as saved:
        found = saved.newest(*abstract(big_state(0)))
    assert found is not None and found[0] == step
    assert_same(found[1:3], big_state(step))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of a few MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def fill(disk, leave, name="filler"):
    free = os.statvfs(disk)
    (disk / name).write_bytes(bytes(free.f_bavail * free.f_bsize - leave))


@pytest.fixture(params=["full disk", "short files"])
def disk(request, tmp_path):
    """(folder with a checkpoint of step 1, what makes saving impossible, what ends that)."""
    if request.param == "full disk":
        place = request.getfixturevalue("small_disk")
        begin, end = (lambda: fill(place, SIZE // 8)), (lambda: (place / "filler").unlink())
    else:
        place, limits = tmp_path, resource.getrlimit(resource.RLIMIT_FSIZE)

        def begin():
            resource.setrlimit(resource.RLIMIT_FSIZE, (LONGEST_FILE, limits[1]))

        def end():
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with Checkpoints(place / "c") as saved:
        save(saved, 1)
    yield place / "c", begin, end
    if request.param == "short files":
        end()


def failure(look):
    """The error that comes of looking often enough."""
    with pytest.raises(UserError) as refused:
        for _ in range(1000):
            look()
            time.sleep(0.01)
    return str(refused.value)


def assert_says_all(message, folder, step):
    assert message.startswith(f"cannot save step {step} in {folder}: "), message
    assert "No space left on device" in message or "File too large" in message
    assert "checkpoints before it are untouched" in message and "\n" not in message


def test_a_failed_save_comes_to_light_at_the_next_look(disk, capfd):
    folder, begin, end = disk
    with Checkpoints(folder) as saved:
        saved.check()
        begin()
        for step in (2, 2, 3):  # one that failed may be tried again
            save(saved, step)
            assert_says_all(failure(saved.check), folder, step)
            saved.check()  # told once
            assert sorted(p.name for p in folder.iterdir()) == ["1"]
        save(saved, 4)
        with pytest.raises(UserError) as refused:
            save(saved, 5)
        assert_says_all(str(refused.value), folder, 4)
        end()
        assert_step(folder, 1)
        save(saved, 5)
    assert_step(folder, 5)
    assert capfd.readouterr() == ("", "")


def test_a_failed_save_comes_to_light_at_the_end(disk, capfd):
    folder, begin, end = disk
    with pytest.raises(UserError) as refused, Checkpoints(folder) as saved:
        begin()
        save(saved, 2)
    assert_says_all(str(refused.value), folder, 2)
    with pytest.raises(UserError) as refused, Checkpoints(folder) as saved:
        save(saved, 2)
        saved.wait()
    assert_says_all(str(refused.value), folder, 2)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError, match="another"), Checkpoints(folder) as saved:
        save(saved, 2)
        raise RuntimeError("another")
    line = capfd.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert_says_all(line[len("error: ") : -1], folder, 2)
    end()
    assert_step(folder, 1)


def test_a_disk_without_any_room_at_all(small_disk, capfd):
    folder = small_disk / "c"
    with Checkpoints(folder) as saved:
        save(saved, 1)
        saved.wait()
        fill(small_disk, 0)
        with pytest.raises(UserError) as refused:
            save(saved, 2)
            saved.wait()
        assert_says_all(str(refused.value), folder, 2)
    assert_step(folder, 1)
    assert capfd.readouterr() == ("", "")


def test_a_read_only_disk(small_disk, capfd):
    folder = small_disk / "c"
    with Checkpoints(folder) as saved:
        save(saved, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Checkpoints(folder) as saved:
        with pytest.raises(UserError, match=rf"cannot save step 2 in {folder}: .*Read-only file"):
            save(saved, 2)
    assert_step(folder, 1)
    assert capfd.readouterr() == ("", "")


def test_a_place_where_no_folder_can_be(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "c"
    with Checkpoints(folder) as saved:
        with pytest.raises(UserError, match=rf"cannot save step 1 in {folder}: .*Not a directory"):
            save(saved, 1)
    assert capfd.readouterr() == ("", "")


def test_an_error_that_ends_the_run_and_a_failed_save_are_one_line(disk, capfd):
    folder, begin, end = disk
    with pytest.raises(UserError) as refused, Checkpoints(folder) as saved:
        begin()
        save(saved, 2)
        raise UserError("the metrics cannot be written")
    message = str(refused.value)
    assert message.startswith("the metrics cannot be written; and cannot save step 2 in ")
    assert "\n" not in message and capfd.readouterr() == ("", "")
    end()
    assert_step(folder, 1)
    assert sorted(p.name for p in folder.iterdir()) == ["1"]


WRITES = {
    "text": lambda path: files.write_text(path, "a" * 2 * LONGEST_FILE),
    "JSON": lambda path: files.write_json(path, ["a" * 2 * LONGEST_FILE]),
    "array": lambda path: files.replace(
        path, lambda file: files.save_array(file, np.zeros(LONGEST_FILE))
    ),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_file_that_cannot_be_written_stays_as_it_was(disk, kind):
    folder, begin, end = disk
    path = folder.parent / "file"
    path.write_text("before")
    begin()
    if (folder.parent / "filler").exists():
        fill(folder.parent, 0, "rest")
    with pytest.raises(OSError) as refused:
        WRITES[kind](path)
    assert refused.value.filename == str(path)
    assert refused.value.strerror in ("No space left on device", "File too large")
    end()
    assert path.read_text() == "before"
    assert not list(folder.parent.glob(".*.tmp"))
    WRITES[kind](path)
    if kind == "array":
        np.testing.assert_array_equal(np.load(path), np.zeros(LONGEST_FILE))
