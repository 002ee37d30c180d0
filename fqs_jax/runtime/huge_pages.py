"""Large pages for the memory in which programs compiled for CPUs compute.

XLA asks the C library for the temporaries of every execution and returns them after it, so each step maps
their pages anew. With pages of 2 MiB there are few to map. glibc, from 2.35 on, reads its setting only when
a process starts, hence the restart. It takes a tenth of a second and does no harm where a GPU or a TPU
computes. FQS_HUGE_PAGES=0 turns it off.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

SWITCH, TUNABLES = "FQS_HUGE_PAGES", "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.hugetlb"
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OLDEST = (2, 35)  # glibc that knows the setting


def restart() -> None:
    """Start this process again, with the same command line, if its memory then comes in large pages.

    Call it before anything has an effect. It returns if there is nothing to gain, or no way to do it.
    """
    # Without Linux, glibc or a Python that can be found, respectively.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
        changes = new_environment(os.environ, _KERNEL.read_text(), library)
        if changes and sys.executable:
            os.execve(sys.executable, sys.orig_argv, {**os.environ, **changes})


def new_environment(environment: Mapping[str, str], kernel: str, library: str) -> dict[str, str]:
    """Environment variables that ask glibc for large pages; empty if it need not, cannot or shall not.

    Args:
      kernel: the kernel's setting, such as "always [madvise] never": only `madvise` leaves the choice to
        the program.
      library: the C library, such as "glibc 2.36".
    """
    name, _, version = library.partition(" ")
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    before = environment.get(TUNABLES, "")
    if (
        environment.get(SWITCH) == "0"
        or _SETTING in before
        or "[madvise]" not in kernel
        or name != "glibc"
        or numbers < _OLDEST
    ):
        return {}
    return {TUNABLES: f"{before}:{_SETTING}=1".lstrip(":"), SWITCH: "0"}
