"""The restart of a process with large pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fqs_jax.runtime import huge_pages
from tests.conftest import REPO

MADVISE, GLIBC = "always [madvise] never\n", "glibc 2.36"
ON = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    "environment, kernel, library, expected",
    [
        ({}, MADVISE, GLIBC, {"GLIBC_TUNABLES": ON}),
        ({"GLIBC_TUNABLES": "a.b=1"}, MADVISE, GLIBC, {"GLIBC_TUNABLES": f"a.b=1:{ON}"}),
        ({"FQS_HUGE_PAGES": "1"}, MADVISE, "glibc 3.0", {"GLIBC_TUNABLES": ON}),
        ({"FQS_HUGE_PAGES": "0"}, MADVISE, GLIBC, {}),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, MADVISE, GLIBC, {}),
        ({}, "[always] madvise never\n", GLIBC, {}),
        ({}, "always madvise [never]\n", GLIBC, {}),
        ({}, MADVISE, "glibc 2.34", {}),
        ({}, MADVISE, "", {}),
    ],
)
def test_when_to_restart(
    environment: dict[str, str], kernel: str, library: str, expected: dict[str, str]
) -> None:
    assert huge_pages.new_environment(environment, kernel, library) == expected


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


@pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="only glibc has the setting",
)
@pytest.mark.parametrize("switch, starts, tunables", [("1", "xx", ON), ("0", "x", "None")])
def test_a_process_starts_once_more_with_its_arguments(tmp_path, switch, starts, tunables):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "kernel", tmp_path / "starts", "a b"],
        env={**os.environ, "FQS_HUGE_PAGES": switch},
        cwd=REPO,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=60)
    assert out == f"{starts} {tunables} a b {process.pid}\n"
