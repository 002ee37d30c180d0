"""Memory that the C library keeps of what was freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fqs_jax.runtime import host_memory
from tests.conftest import REPO

# Blocks too small to be mapped alone, and one behind them that stays, so that the heap cannot shrink.
PROGRAM = """
import ctypes
from fqs_jax.runtime import host_memory
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before, size = resident(), 60_000
blocks = [libc.malloc(size) for _ in range(4000)]
for block in blocks:
    libc.memset(block, 1, size)
for block in blocks[:-1]:
    libc.free(block)
kept = resident()
host_memory.trim()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(
    "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="only glibc can return memory"
)
def test_freed_memory_is_returned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPO, capture_output=True, text=True, check=True
    )
    kept, left = map(int, done.stdout.split())  # MiB
    assert kept > 200 and left < 50


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    host_memory.trim()
