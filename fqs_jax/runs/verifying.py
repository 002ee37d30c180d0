"""Verify saved checkpoints: every array is read once and compared with its fingerprint.

One array is in memory at a time, on one device, whatever mesh saved it. Nothing is changed on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fqs_jax.runs import damage, orbax_setup
from fqs_jax.runs.damage import Damaged, Description
from fqs_jax.runtime import paths, sharding

_UNREAD = ocp.PLACEHOLDER


def described_arrays(step: Path) -> dict[str, Description]:
    """The descriptions of a checkpoint's arrays, by item: "params" and "optimizer".

    Args:
      step: the folder of the checkpoint.

    Raises:
      Damaged: they cannot be read, or differ from the saved ones.
      UserError: they may not be read.
    """
    step = paths.full(step)  # as Orbax needs it
    with damage.reading(step), orbax_setup.reader() as reader:
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        record = reader.restore(step, args=args)["progress"]
    return damage.open_record(record)[1]


def count_bytes(described: dict[str, Description]) -> int:
    """The size in bytes of described arrays, as they are in memory."""
    return sum(_size(leaf) for item in described.values() for leaf in item.values())


def check_arrays(
    step: Path, described: dict[str, Description], advance: Callable[[int], None]
) -> None:
    """Compare every array of a checkpoint with its description.

    Args:
      step: the folder of the checkpoint.
      described: as `described_arrays` returns it.
      advance: called after each array with its size in bytes.

    Raises:
      Damaged: an array cannot be read, or has other bits than the saved one.
      UserError: it may not be read.
    """
    for item, leaves in described.items():
        folder = paths.full(step) / item
        with damage.reading(step):
            tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
        found = damage.by_path(tree)
        if missing := sorted(leaves.keys() ^ found.keys()):
            raise Damaged(f"{item}: {missing[0]} is not both in its arrays and in its progress")
        for path, leaf in leaves.items():
            array = _read_array(folder, tree, path)
            if damage.describe({"array": array})["array"] != leaf:
                raise Damaged(f"{item}: {path} differs from the array that was saved")
            advance(_size(leaf))


def _read_array(folder: Path, tree: Any, path: str) -> jax.Array:
    """One array of an item of a checkpoint; `tree` describes all of them."""
    device = jax.sharding.SingleDeviceSharding(sharding.single_device().devices.item())
    wanted = damage.by_path(tree)[path]
    abstract = jax.ShapeDtypeStruct(wanted.shape, wanted.dtype, sharding=device)
    item = jax.tree.map(lambda leaf: abstract if leaf is wanted else _UNREAD, tree)
    how = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(sharding=device) if leaf is wanted else ocp.RestoreArgs(),
        tree,
    )
    with damage.reading(folder.parent):
        args = ocp.args.PyTreeRestore(item=item, restore_args=how)
        restored = ocp.PyTreeCheckpointHandler().restore(folder, args=args)
    [array] = [leaf for leaf in jax.tree.leaves(restored) if leaf is not _UNREAD]
    return array


def _size(leaf: dict[str, Any]) -> int:
    return math.prod(leaf["shape"]) * jnp.dtype(leaf["dtype"]).itemsize
