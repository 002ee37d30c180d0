"""Locks of folders: one run at a time, whatever became of the one before."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest

from fqs_jax.runtime import locks
from fqs_jax.runtime.errors import UserError

HOLDER = """
import sys, pathlib
from fqs_jax.runtime import locks
with locks.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "W")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_the_second_is_told_who_holds_it(tmp_path, other):
    folder = tmp_path / "W"
    with pytest.raises(UserError) as refused, locks.FolderLock(folder):
        pass
    holder = f"process {other.pid} on {socket.gethostname()}"
    assert str(refused.value) == (
        f"{folder} is in use by {holder}; wait until it ends, or use another --workdir"
    )
    other.send_signal(signal.SIGKILL)  # which leaves the lock file behind
    other.wait()
    assert (folder / locks.NAME).exists()
    with locks.FolderLock(folder) as lock:
        lock.check()


def test_one_of_many_that_start_at_the_same_moment_gets_it(tmp_path):
    together, results = threading.Barrier(8), []

    def start():
        together.wait()
        try:
            with locks.held(tmp_path / "W"):
                results.append("held")
                ended.wait()
        except UserError as error:
            results.append(str(error))
            if len(results) == len(threads):
                ended.set()

    ended = threading.Event()
    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ended.set()
    assert results.count("held") == 1
    assert all(f"is in use by process {os.getpid()} on" in r for r in results if r != "held")


def test_a_waiting_process_gets_it_in_the_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)
    first = locks.held(tmp_path)
    first.__enter__()
    timer = threading.Timer(0.5, first.__exit__, (None, None, None))
    timer.start()
    with locks.held(tmp_path, 30):
        timer.join()
    line = capfd.readouterr().err
    assert line.startswith(f"note: waiting for process {os.getpid()} on ") and line.count("\n") == 1


def test_a_file_is_waited_for(tmp_path, monkeypatch, capfd):
    """Not only by other processes: each opening of a file has a lock of its own."""
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)
    path = tmp_path / "lines"
    held, wanted = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    locks.wait_for(held, path)
    waiting = threading.Thread(target=locks.wait_for, args=(wanted, path))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    os.close(held)
    waiting.join(60)
    assert not waiting.is_alive()
    os.close(wanted)
    assert f"waiting for another process, which writes {path}" in capfd.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, capfd, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.FolderLock(tmp_path) as lock:
        lock.check()
    assert capfd.readouterr().err == (
        f"note: the disk of {tmp_path} has no locks, so start no second run there\n"
    )


@pytest.mark.parametrize("what", ["moved", "removed", "made anew"])
def test_a_folder_that_is_no_longer_there(tmp_path, what):
    folder = tmp_path / "W" / "stage_1"
    with locks.FolderLock(folder) as lock:
        lock.check()
        if what == "moved":
            (tmp_path / "W").rename(tmp_path / "V")
        else:
            shutil.rmtree(folder)
        if what == "made anew":
            folder.mkdir()
            (folder / locks.NAME).write_text("")
        with pytest.raises(UserError, match=f"{folder} was moved or removed while it was in use"):
            lock.check()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"/file is a file, not a folder; give --workdir another name"
    ):
        with locks.held(tmp_path / "file"):
            pass
