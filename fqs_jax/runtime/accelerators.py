"""Accelerators that a machine has and JAX does not use, and what to install for them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from fqs_jax.runtime.notes import note

# JAX's installation page (docs.jax.dev/en/latest/installation.html): the oldest driver of each CUDA.
CUDA_13_DRIVER, CUDA_12_DRIVER = 580, 525
_TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
_ANSWER = 3.0  # seconds for nvidia-smi, which can hang with a broken driver


@dataclasses.dataclass(frozen=True)
class Machine:
    """The accelerators that a machine and its Python environment show.

    Attributes:
      kind: "nvidia", "amd" or "tpu"; None if there is no accelerator.
      driver: the NVIDIA driver's version, such as "550.54.15"; empty if unknown.
      plugins: the packages for accelerators that are installed.
    """

    kind: str | None = None
    driver: str = ""
    plugins: tuple[str, ...] = ()


def note_unused() -> None:
    """Note once that JAX computes on the CPU of a machine that has an accelerator.

    Nothing is said to a user who chose the CPU, or hid the GPUs with CUDA_VISIBLE_DEVICES.
    """
    import jax

    chosen = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    if not chosen and jax.default_backend() == "cpu" and (line := advice(look())):
        note(line, once="unused accelerator")


def look(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Machine:
    """The machine under a root of the file system, seen with these environment variables.

    Files are preferred to nvidia-smi, which is run only if it is all that there is, as under WSL.
    """
    plugins = tuple(name for name in _PLUGINS if importlib.util.find_spec(name))
    dev = root / "dev"
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden:
        if any(dev.glob("nvidia[0-9]*")):
            return Machine("nvidia", _driver_of_file(root), plugins)
        if driver := _driver_of_program(environment.get("PATH", "")):
            return Machine("nvidia", driver, plugins)
    named = any(environment.get(name) for name in _TPU_VARIABLES)
    if any(dev.glob("accel[0-9]*")) or (named and any((dev / "vfio").glob("[0-9]*"))):
        return Machine("tpu", plugins=plugins)
    if (dev / "kfd").exists() and environment.get("HIP_VISIBLE_DEVICES") not in ("", "-1"):
        return Machine("amd", plugins=plugins)
    return Machine(plugins=plugins)


def advice(machine: Machine) -> str | None:
    """One sentence on what to install for the accelerator; None if there is none."""
    unused = "but JAX computes on the CPU"
    if machine.kind == "tpu":
        if "libtpu" in machine.plugins:
            return f"this machine has a TPU, {unused}; JAX_PLATFORMS=tpu makes JAX say why"
        return f"this machine has a TPU, {unused}: pip install 'fqs_jax[tpu]'"
    if machine.kind == "amd":
        return (
            f"this machine has an AMD GPU, {unused}; JAX has a plugin for ROCm, which was not tried "
            "here: see docs.jax.dev/en/latest/installation.html"
        )
    if machine.kind is None:
        return None
    version = f" (driver {machine.driver})" if machine.driver else ""
    found = f"this machine has an NVIDIA GPU{version}, {unused}"
    if any("cuda" in name for name in machine.plugins):
        return f"{found}, although its plugin is installed; JAX_PLATFORMS=cuda makes JAX say why"
    major = int(machine.driver.partition(".")[0] or 0)
    either = (
        f"{found}: pip install 'fqs_jax[cuda]' with driver {CUDA_13_DRIVER} or newer, "
        "'fqs_jax[cuda12]' with an older one"
    )
    if not major:
        return either
    if major >= CUDA_13_DRIVER:
        return (
            f"{found}: pip install 'fqs_jax[cuda]', or 'fqs_jax[cuda12]' for a GPU older than a T4"
        )
    if major >= CUDA_12_DRIVER:
        return f"{found}: pip install 'fqs_jax[cuda12]'"
    return f"{found}: install driver {CUDA_12_DRIVER} or newer, then pip install 'fqs_jax[cuda12]'"


def _driver_of_file(root: Path) -> str:
    """The driver's version from /proc; empty if unknown, as in some containers."""
    text = ""
    with contextlib.suppress(OSError):
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar ..."; the open module's name
    # has more words before the version.
    match = re.search(r"NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text)
    return match[1] if match else ""


def _driver_of_program(path: str) -> str:
    """The driver's version from nvidia-smi; empty if there is no such program, no GPU or no answer."""
    program = shutil.which("nvidia-smi", path=path)
    if program is None:
        return ""
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        child = subprocess.Popen(
            query, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        answer, _ = child.communicate(timeout=_ANSWER)
    except subprocess.TimeoutExpired:
        child.kill()  # not waited for: a process that hangs in the driver does not even die
        return ""
    except OSError:
        return ""
    first = answer.decode(errors="replace").strip().partition("\n")[0]
    return first if child.returncode == 0 and re.fullmatch(r"\d+(\.\d+)+", first) else ""
