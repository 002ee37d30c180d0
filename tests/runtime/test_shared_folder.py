"""A working directory that is another folder on the second host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO
from tests.programs import ended, free_port

# `prepare` is where training calls the check. The two processes give one name to two folders, as hosts do
# that have a disk of their own at the same path.
PROGRAM = """
import socket, sys
from pathlib import Path
import jax
from fqs_jax.runtime import cli, processes, shared_folder

jax.config.update("jax_platforms", "cpu")
shared_folder._LATE = 0.3
host = socket.gethostname()
shared_folder.socket.gethostname = lambda: f"{host}-{Path.cwd().name}"  # the two are two hosts

def main(words):
    from fqs_jax.runs import source
    from tests.tiny_runs import clock_config
    source.prepare(Path(words[1]), clock_config({}))
    print("prepared")

cli.run(main, processes.define_flags, arguments=1)
"""


def prepare(*folders: Path) -> list[tuple[int, str, str]]:
    """What becomes of one process for each folder: exit code, output, error."""
    cluster = (f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={len(folders)}")
    started = []
    for number, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", PROGRAM, *cluster, f"--process_id={number}", "run"]
        environment = os.environ | {"PYTHONPATH": str(REPO)}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe
            )
        )
    with ended(*started):
        said = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, *words) for process, words in zip(started, said, strict=True)]


def test_a_folder_of_its_own_on_each_host_is_refused_in_a_line(tmp_path: Path) -> None:
    first, second = prepare(tmp_path / "a", tmp_path / "b")
    host = socket.gethostname()
    assert first[:2] == second[:2] == (2, "")
    expected = f"error: run of process 0 ({host}-a) is not there on {host}-b: every host has a disk"
    assert first[2].startswith(expected) and first[2].count("\n") == 1
    assert second[2] == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_both_see_is_used_and_kept_clean(tmp_path: Path) -> None:
    first, second = prepare(tmp_path / "a", tmp_path / "a")
    assert first == (0, "prepared\n", "") and second == (0, "", "")
    assert not list((tmp_path / "a" / "run").glob(".seen*"))
