"""Room for the checkpoints of a stage, asked before hours of training.

The bytes of the arrays count, which Orbax compresses a little. A save that fails later, because others
have filled the disk meanwhile, is reported by checkpoints.py, which frees what was written.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import jax

from fqs_jax.runs.folders import checkpoints
from fqs_jax.runtime import paths, sizes
from fqs_jax.runtime.agreement import on_main
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.notes import note

_ADVICE = "make room, or give --workdir another place"


def needed(state: Any) -> int:
    """Bytes of all arrays, or shapes, of a tree: each once, on however many devices it is."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def free(folder: Path) -> int | None:
    """Bytes that the user can still write under a folder, which need not exist yet.

    Returns:
      None in a bucket, which has no limit, and for a file system that does not know.
    """
    if paths.is_bucket(folder):
        return None
    place = next((p for p in (folder, *folder.parents) if p.is_dir()), None)
    try:
        usage = None if place is None else shutil.disk_usage(place)
    except OSError:
        return None
    return None if usage is None or not usage.total else usage.free


def check(folder: Path, state: Any, keep: int) -> None:
    """Refuse a stage of which not even one checkpoint can be saved; note that the last ones may not fit.

    Args:
      folder: of its checkpoints; those that are there already take no more room.
      state: arrays or shapes of what a checkpoint holds.
      keep: number of checkpoints that stay. While one more is written, all of them are there.

    Raises:
      UserError: the disk of process 0 has less free than a checkpoint needs.
    """

    def check_here() -> None:
        room, size = free(folder), needed(state)
        if room is None:
            return
        more = max(1, keep + 1 - len(checkpoints(folder)))
        found = f"its disk has {sizes.shown(room)} free"
        if room < size:
            raise UserError(
                f"a checkpoint in {folder} needs {sizes.shown(size)}, and {found}; {_ADVICE}, and run the "
                "command again"
            )
        if room < more * size:
            note(
                f"{more} more checkpoints of {sizes.shown(size)} will be in {folder} at once, and {found}; "
                f"{_ADVICE}, or keep fewer with --config.keep_checkpoints"
            )

    on_main(check_here)
