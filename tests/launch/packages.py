"""The environment with the real clients of clusters, xpk and SkyPilot, which `make clusters` makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import REPO

FOLDER = Path(os.environ.get("FQS_CLUSTERS") or REPO / ".venv-clusters")


def needs(name: str) -> pytest.MarkDecorator:
    """Skip tests where a program of the environment is not installed."""
    reason = (
        f"{name} is not in {FOLDER}: make clusters (FQS_CLUSTERS=DIR names another environment)"
    )
    return pytest.mark.skipif(not program(name).exists(), reason=reason)


def program(name: str) -> Path:
    """A program of the environment."""
    return FOLDER / "bin" / name


def environment(home: Path) -> dict[str, str]:
    """Its programs first, and a home folder of its own: they write their settings there."""
    path = f"{FOLDER / 'bin'}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HOME": str(home)}
