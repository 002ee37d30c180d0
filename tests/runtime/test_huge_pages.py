"""The restart of a process with large pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fqs_jax.runtime import huge_pages
from tests.conftest import REPO

KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MADVISE, GLIBC = "always [madvise] never\n", "glibc 2.36"
ON = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    "environment, kernel, library, expected",
    [
        ({}, MADVISE, GLIBC, ON),
        ({"GLIBC_TUNABLES": "a.b=1"}, MADVISE, GLIBC, f"a.b=1:{ON}"),
        ({"FQS_HUGE_PAGES": "1"}, MADVISE, "glibc 3.0", ON),
        ({"FQS_HUGE_PAGES": "0"}, MADVISE, GLIBC, None),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, MADVISE, GLIBC, None),
        ({}, "[always] madvise never\n", GLIBC, None),
        ({}, "always madvise [never]\n", GLIBC, None),
        ({}, MADVISE, "glibc 2.34", None),
        ({}, MADVISE, "", None),
    ],
)
def test_when_to_restart(
    environment: dict[str, str], kernel: str, library: str, expected: str | None
) -> None:
    found = huge_pages.new_environment(environment, kernel, library)
    assert found == ({"GLIBC_TUNABLES": expected, "FQS_HUGE_PAGES": "0"} if expected else {})


# How the tests find out where the restart is possible.
def _version() -> tuple[int, ...]:
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


KNOWN = sys.platform.startswith("linux") and _version() >= (2, 35)
needs_glibc = pytest.mark.skipif(not KNOWN, reason="only glibc 2.35 and newer has the setting")


PROGRAM = """
import os, sys
from pathlib import Path
from fqs_jax.runtime import huge_pages
kernel = Path(sys.argv[1])
kernel.write_text("always [madvise] never")
huge_pages._KERNEL = kernel
starts = Path(sys.argv[2])
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
huge_pages.restart()
print(starts.read_text(), os.environ.get("GLIBC_TUNABLES"), sys.argv[3], os.getpid())
"""


def _environment(switch: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    return kept | {"FQS_HUGE_PAGES": switch}


@needs_glibc
@pytest.mark.parametrize("switch, starts, tunables", [("1", "xx", ON), ("0", "x", "None")])
def test_a_process_starts_once_more_with_its_arguments(tmp_path, switch, starts, tunables):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "kernel", tmp_path / "starts", "a b"],
        env=_environment(switch),
        cwd=REPO,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=60)
    assert out == f"{starts} {tunables} a b {process.pid}\n"


UNUSABLE = """
import os, sys
from pathlib import Path
from fqs_jax.runtime import huge_pages
huge_pages._KERNEL = Path(sys.argv[1])
huge_pages._KERNEL.write_text("always [madvise] never")
for sys.executable in ("", None, "/no/such/python"):
    huge_pages.restart()
print("goes on")
"""


def test_without_an_executable_the_process_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", UNUSABLE, str(tmp_path / "kernel")]
    done = subprocess.run(command, env=_environment("1"), cwd=REPO, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("goes on\n", "")


CONFIG = """
import os
from pathlib import Path
from configs import common
with (Path(__file__).parent / "seen").open("a") as file:
    print(os.environ.get("GLIBC_TUNABLES"), file=file)
def get_config():
    return common.get_config()
"""


@needs_glibc
@pytest.mark.skipif(
    not KERNEL.exists() or "[madvise]" not in KERNEL.read_text(),
    reason="the kernel does not leave large pages to programs",
)
def test_launch_restarts_before_its_config_runs(tmp_path: Path) -> None:
    """A config is a program: it runs once, in the environment that the user gave."""
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "fqs_jax.launch", "--config=config.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'W'}"],
        env=_environment("1") | {"PYTHONPATH": str(REPO)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (tmp_path / "seen").read_text() == f"{ON}\n", done.stderr
    assert done.returncode == 2 and "describes no model" in done.stderr
