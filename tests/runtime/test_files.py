"""Files and folders appear complete, after their content has reached the disk, or not at all."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError
from tests.conftest import REPO


@pytest.fixture
def calls(monkeypatch):
    """The fsyncs and renames of a test in order, each with the name of the file or folder."""
    found = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        found.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def watched_replace(source, target):
        found.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return found


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, calls):
    files.write_text(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9"
    assert calls == [("fsync", ".a.txt.tmp"), ("rename", "a.txt"), ("fsync", tmp_path.name)]


def test_a_folder_is_on_disk_before_it_has_its_name(tmp_path, calls):
    with files.new_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        for path in (folder / "a", folder / "inner" / "b"):
            path.write_text("content")
        temporary = folder.name
    assert calls[-2:] == [("rename", "out"), ("fsync", tmp_path.name)]
    assert set(calls[:-2]) == {("fsync", name) for name in ("a", "b", "inner", temporary)}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("many_writers", [False, True])
def test_a_write_that_fails_changes_nothing(tmp_path, many_writers):
    def write(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="No space"):
        files.replace(tmp_path / "a", write, many_writers)
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_kill_leaves_is_overwritten(tmp_path):
    (tmp_path / ".a.tmp").write_text("much longer than the next content")
    files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    """Both have written half of their file when either is renamed."""
    path, both = tmp_path / "a", threading.Barrier(2, timeout=60)

    def write_file(content):
        def write(file):
            file.write(content)
            file.flush()
            both.wait()
            file.write(content)

        files.replace(path, write, many_writers=True)

    threads = [threading.Thread(target=write_file, args=(content,)) for content in (b"xx", b"yy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"xxxx", b"yyyy")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_an_array_makes_its_folder_and_names_what_refuses(tmp_path):
    files.replace_array(tmp_path / "new" / "a.npy", np.arange(3))
    assert np.load(tmp_path / "new" / "a.npy").tolist() == [0, 1, 2]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*/file/a\.npy: .*set data\.cache_dir"):
        files.replace_array(tmp_path / "file" / "a.npy", np.arange(3))


def test_a_taken_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with files.new_folder(tmp_path / "out") as folder:  # an empty one may be there
        (folder / "a").write_text("")
    with pytest.raises(UserError, match="exists already"), files.new_folder(tmp_path / "out"):
        raise AssertionError("the block is not entered")


# Folders --------------------


def test_what_is_not_an_empty_folder_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    taken = [tmp_path / name for name in ("file", "full", "pipe", "link", "dangling", "loop")]
    before = sorted(tmp_path.rglob("*"))
    for out in [*taken, Path("/dev/null")]:
        with pytest.raises(UserError, match="exists already"), files.new_folder(out):
            raise AssertionError("the block is not reached")
    for out in (tmp_path / "file" / "below", tmp_path / "loop" / "below", tmp_path / ("x" * 250)):
        with pytest.raises(UserError, match="cannot write"), files.new_folder(out):
            raise AssertionError("the block is not reached")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_next_writer_removes_what_a_killed_one_has_left(tmp_path):
    code = (
        "import os, signal, sys\nfrom fqs_jax.runtime import files\n"
        "with files.new_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'half').write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "out"], cwd=REPO, check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and (left / "half").exists()
    others = [
        tmp_path / name for name in (".out.tmp", ".out.0123abcd.tmp.x", ".other.0123abcd.tmp")
    ]
    for other in others:
        other.mkdir()
    with files.new_folder(tmp_path / "out") as living:
        assert not left.exists()
        (tmp_path / "out").mkdir()
        with files.new_folder(tmp_path / "out"):  # a second writer leaves the first one alone
            assert living.exists()
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "out"])


def test_a_link_in_the_place_of_a_left_folder_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("a")
    (tmp_path / ".out.0123abcd.tmp").symlink_to("mine")
    with files.new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "mine" / "a").exists()
