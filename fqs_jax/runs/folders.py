"""Folders of a working directory: where stages and their checkpoints are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ml_collections

from fqs_jax.curriculum.stage import Stage
from fqs_jax.runtime import agreement, files

_PAUSE = 0.3  # seconds between two looks


def latest_step(folder: Path) -> int | None:
    """The newest whole step in a folder of checkpoints, without opening it; None if none."""
    return max(saved_steps(folder), default=None)


def appears(folder: Path, seconds: float = 90.0) -> bool:
    """True as soon as a folder exists here; False if it does not within some seconds.

    Network disks may show up to a minute late what another host made.
    """
    deadline = time.monotonic() + seconds
    while not folder.is_dir():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return True


def saved_steps(folder: Path) -> list[int]:
    """Whole steps in a folder, newest first."""
    if not folder.is_dir():
        return []
    steps = (int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())
    return sorted(steps, reverse=True)


def free_name(path: Path) -> Path:
    """The path, or the first of path_2, path_3, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free


def source_folder(root: Path) -> Path:
    return root / "source"


def stage_folder(root: Path, number: int) -> Path:
    return root / f"stage_{number}"


def saved_step(root: Path, number: int) -> int | None:
    """The newest step saved of a stage, None if there is none; of several processes, as the first sees it."""
    step = latest_step(stage_folder(root, number) / "checkpoints")
    return next(iter(agreement.agreed([] if step is None else [step])), None)


def read_run(root: Path, number: int) -> tuple[Stage, ml_collections.ConfigDict]:
    """The stage row and config that a stage of the working directory was started with."""
    run = files.read_json(stage_folder(root, number) / "run.json")
    fields: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in run["stage"].items()
    }
    return Stage(**fields), ml_collections.ConfigDict(run["config"])


def existing_stages(root: Path) -> list[Stage]:
    """Stages of a working directory that have a checkpoint, in order."""
    numbers = sorted(
        int(p.name.split("_")[1]) for p in root.glob("stage_*") if (p / "run.json").exists()
    )
    saved = [n for n in numbers if latest_step(stage_folder(root, n) / "checkpoints") is not None]
    return [read_run(root, n)[0] for n in saved]
