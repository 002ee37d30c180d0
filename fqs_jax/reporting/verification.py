"""Verify all checkpoints of a working directory, with progress."""

from __future__ import annotations

from pathlib import Path

import jax

from fqs_jax.reporting import inventory
from fqs_jax.reporting.inventory import Contents
from fqs_jax.runs import folders, verifying
from fqs_jax.runs.damage import Damaged, Description
from fqs_jax.runtime.progress import Progress

_MB = 10**6


def verify(contents: Contents) -> Contents:
    """The contents with the damage of every checkpoint. All are read, on the CPU.

    An accelerator is left alone: a run that trains may hold it.

    Raises:
      UserError: a checkpoint may not be read.
    """
    jax.config.update("jax_platforms", "cpu")
    steps = [
        folders.checkpoint_folder(contents.root, stage.number) / one.folder
        for stage in contents.stages
        for one in stage.checkpoints
    ]
    described, damage = _described(steps)
    total = sum(map(verifying.count_bytes, described.values()))
    done = 0
    with Progress("verifying, MB", 0, -(-total // _MB)) as progress:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.advance_to(-(-done // _MB))

        for step, arrays in described.items():
            try:
                verifying.check_arrays(step, arrays, advance)
            except Damaged as error:
                damage[step] = str(error)
    # A run that trains here may have deleted an old step while it was read.
    found = {step: finding for step, finding in damage.items() if step.is_dir()}
    return inventory.with_damage(contents, found)


def _described(steps: list[Path]) -> tuple[dict[Path, dict[str, Description]], dict[Path, str]]:
    """The descriptions of the arrays of each checkpoint; and the damage of those that have none."""
    described, damage = {}, {}
    for step in steps:
        try:
            described[step] = verifying.described_arrays(step)
        except Damaged as error:
            damage[step] = str(error)
    return described, damage
