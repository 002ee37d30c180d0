"""The installation of the Makefile, with a stand-in for pip: quiet, and loud where it fails."""

import os
import subprocess

import pytest

from tests.conftest import REPO

PIP = """#!/bin/sh
[ "$3" = --version ] && exit 0
for i in $(seq 60); do echo "Collecting package$i>=1"; echo "  Downloading package$i"; done
echo "Installing collected packages: a, b, c"
{end}
"""


def make(folder, end):
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PIP.replace("{end}", end))
    python.chmod(0o755)
    command = ("make", f"VENV={folder}", f"{folder}/.installed")
    # Not as a part of the `make test` that this test may run in.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=REPO, env=outside, capture_output=True, text=True)


def test_an_installation_is_quiet_but_for_progress(tmp_path):
    done = make(tmp_path, "echo Successfully installed a b c")
    first, *progress, last = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / ".installed").exists()
    assert first.startswith("Installing . into ") and last.startswith("  installed in ")
    assert progress == [
        "  25 packages found, now package25>=1",
        "  50 packages found, now package50>=1",
        "  unpacking 3 packages",
    ]
    assert len((tmp_path / "install.log").read_text().splitlines()) == 123


@pytest.mark.parametrize("end", ["echo 'ERROR: no network' >&2; exit 1", "kill -9 $$"])
def test_a_failed_installation_shows_its_log(tmp_path, end):
    done = make(tmp_path, end)
    assert done.returncode == 2 and not (tmp_path / ".installed").exists()
    assert "Collecting package60" in done.stderr and "error: the installation failed" in done.stderr
    assert "kill" in end or "ERROR: no network" in done.stderr
