"""What is said about accelerators that JAX does not use, on machines made of files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import jax
import pytest

from fqs_jax.runtime import accelerators, notes
from fqs_jax.runtime.accelerators import Machine, advice, look

VERSION = """NVRM version: NVIDIA UNIX {0}x86_64 Kernel Module  {1}  Tue Mar  5 22:23:56 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1)
"""


def make_machine(root: Path, *files: str, version: str = "") -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if version:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        (root / "proc/driver/nvidia/version").write_text(version)
    return root


def make_program(folder: Path, text: str) -> dict[str, str]:
    """An environment whose PATH has an nvidia-smi."""
    folder.mkdir()
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o700)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "_PLUGINS", ("a_module_that_is_not_there",))


@pytest.mark.parametrize(
    "kernel, version",
    [("", "550.54.15"), ("", "580.65.06"), ("Open Kernel Module for ", "570.1")],
)
def test_the_driver_is_read_from_its_file(tmp_path: Path, kernel: str, version: str) -> None:
    text = VERSION.format("", version)
    if kernel:  # the open module's line
        text = f"NVRM version: NVIDIA UNIX {kernel}x86_64  {version}  Release Build\n"
    root = make_machine(tmp_path, "dev/nvidia0", "dev/nvidiactl", version=text)
    assert look(root, {}) == Machine("nvidia", version)


def test_a_gpu_whose_driver_is_unknown(tmp_path: Path) -> None:
    root = make_machine(tmp_path, "dev/nvidia0")
    assert look(root, {}) == Machine("nvidia", "")
    root = make_machine(tmp_path / "b", "dev/nvidia3", version="\x00 no version\n")
    assert look(root, {}) == Machine("nvidia", "")


def test_files_are_preferred_to_the_program(tmp_path: Path) -> None:
    environment = make_program(tmp_path / "bin", f"touch {tmp_path}/ran; echo 1.0")
    root = make_machine(tmp_path, "dev/nvidia0", version=VERSION.format("", "525.60.13"))
    assert look(root, environment) == Machine("nvidia", "525.60.13")
    assert not (tmp_path / "ran").exists()


def test_the_program_is_asked_where_there_are_no_files(tmp_path: Path) -> None:
    root = make_machine(tmp_path, "dev/dxg")  # WSL
    environment = make_program(tmp_path / "bin", "printf '535.1\\n535.1\\n'")
    assert look(root, environment) == Machine("nvidia", "535.1")
    hidden = environment | {"CUDA_VISIBLE_DEVICES": ""}
    assert look(root, hidden) == Machine()


@pytest.mark.parametrize(
    "text", ["exit 9", "echo 535.1; exit 9", "echo 'NVIDIA-SMI has failed'", "printf '\\377'", ""]
)
def test_a_program_that_finds_no_gpu(tmp_path: Path, text: str) -> None:
    assert look(tmp_path, make_program(tmp_path / "bin", text)) == Machine()


def test_a_program_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerators, "_ANSWER", 0.2)
    environment = make_program(tmp_path / "bin", "trap '' TERM INT; exec sleep 30")
    before = time.monotonic()
    assert look(tmp_path, environment) == Machine()
    assert time.monotonic() - before < 10


def test_other_accelerators(tmp_path: Path) -> None:
    tpu, amd = Machine("tpu"), Machine("amd")
    assert look(make_machine(tmp_path / "a", "dev/accel0", "dev/accel1"), {}) == tpu
    # An NPU of a laptop, and a device that is passed through to a virtual machine.
    assert look(make_machine(tmp_path / "b", "dev/accel/accel0"), {}) == Machine()
    passed = make_machine(tmp_path / "c", "dev/vfio/0", "dev/vfio/vfio")
    assert look(passed, {}) == Machine()
    assert look(passed, {"TPU_WORKER_ID": "0"}) == tpu
    assert look(tmp_path / "none", {"TPU_WORKER_ID": "0"}) == Machine()
    rocm = make_machine(tmp_path / "d", "dev/kfd")
    assert look(rocm, {}) == amd
    assert look(rocm, {"HIP_VISIBLE_DEVICES": "-1"}) == Machine()


@pytest.mark.parametrize(
    "machine, part",
    [
        (Machine("nvidia", "580.65.06"), "(driver 580.65.06), but JAX computes on the CPU: pip "
         "install 'fqs_jax[cuda]'"),
        (Machine("nvidia", "579.9"), "CPU: pip install 'fqs_jax[cuda12]'"),
        (Machine("nvidia", "525.60.13"), "CPU: pip install 'fqs_jax[cuda12]'"),
        (Machine("nvidia", "470.1"), "install driver 525 or newer, then pip install 'fqs_jax[cuda12]'"),
        (Machine("nvidia"), "'fqs_jax[cuda]' with driver 580 or newer, 'fqs_jax[cuda12]' with an"),
        (Machine("nvidia", "580.1", ("jax_cuda13_plugin",)), "JAX_PLATFORMS=cuda makes JAX say why"),
        (Machine("tpu"), "pip install 'fqs_jax[tpu]'"),
        (Machine("tpu", plugins=("libtpu",)), "JAX_PLATFORMS=tpu makes JAX say why"),
        (Machine("amd", plugins=("libtpu",)), "an AMD GPU, but JAX computes on the CPU"),
    ],
)  # fmt: skip
def test_one_sentence_names_what_to_install(machine: Machine, part: str) -> None:
    line = advice(machine)
    assert line is not None and part in line and "\n" not in line


def test_the_note_comes_once_and_only_if_nobody_chose_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notes, "_noted", set())
    monkeypatch.setattr(accelerators, "look", lambda: Machine("nvidia", "580.1"))
    accelerators.note_unused()  # the tests set JAX_PLATFORMS=cpu
    assert capsys.readouterr().err == ""
    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_platforms", None)
        for _ in range(2):
            accelerators.note_unused()
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        accelerators.note_unused()
    finally:
        jax.config.update("jax_platforms", before)
    [line] = capsys.readouterr().err.splitlines()
    assert line == "note: " + (advice(Machine("nvidia", "580.1")) or "")


def test_a_machine_without_accelerators_gets_no_note() -> None:
    assert advice(Machine(plugins=("libtpu",))) is None
