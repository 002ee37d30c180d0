"""Fingerprints: what tells whether the arrays that come back are, to the bit, those that were saved.

A leaf's fingerprint is the sum, modulo 2**32, of mix(word ^ mask(position)) over its words. Integer
sums have no order, so it is the same on every mesh. `mix` is a bijection, so that a change within
one word always changes the sum; other changes (swapped or zeroed blocks) go unnoticed with
probability 2**-32 a leaf.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from fqs_jax.runtime.agreement import T
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.processes import settled


class Damaged(Exception):
    """A checkpoint cannot be read, or is not what was saved; one line."""


# {path: {"shape": [...], "dtype": name, "fingerprint": int}}: leaves as JSON has them.
Description = dict[str, dict[str, Any]]

_AXIS_SEED = 0x9E3779B9  # 2**32 / golden ratio: axes get seeds that are far from each other


def fingerprint(tree: Any) -> Any:
    """A uint32 for every array of a tree, the same however the arrays are sharded.

    Nothing is gathered: every device sums its own shards, and only sums are exchanged.
    """
    return jax.tree.map(lambda leaf: settled(_leaf(leaf)), tree)


def record(progress: dict[str, Any], items: dict[str, Any]) -> dict[str, Any]:
    """What is saved beside trees of arrays, with a digest: fingerprints may be damaged too."""
    arrays = {item: describe(tree) for item, tree in items.items()}
    return {"progress": progress, "arrays": arrays, "sha256": _digest(progress, arrays)}


def open_record(record: Any) -> tuple[dict[str, Any], dict[str, Description]]:
    """The progress and the descriptions of the items that `record` put together.

    Raises:
      Damaged: it is not what was saved.
    """
    if not isinstance(record, dict):
        raise Damaged("its progress is no JSON object")
    progress, arrays = record.get("progress"), record.get("arrays")
    if record.get("sha256") != _digest(progress, arrays):
        raise Damaged("its progress is not what was saved")
    return progress, arrays  # type: ignore[return-value]


def describe(tree: Any) -> Description:
    """Shapes, types and fingerprints of a tree's arrays, by path."""
    values = jax.device_get(fingerprint(tree))
    return {
        path: {**_shape_and_dtype(leaf), "fingerprint": int(value)}
        for (path, leaf), value in zip(by_path(tree).items(), jax.tree.leaves(values), strict=True)
    }


def misfit(described: Description, tree: Any) -> str | None:
    """The first difference in paths or shapes between described arrays and an (abstract) tree.

    Types may differ: they can be converted.
    """
    leaves = by_path(tree)
    for path in described.keys() - leaves.keys():
        return f"{path} is there, and is not wanted"
    for path in leaves.keys() - described.keys():
        return f"{path} is not there"
    for path, leaf in leaves.items():
        saved, wanted = tuple(described[path]["shape"]), tuple(leaf.shape)
        if saved != wanted:
            return f"{path} has shape {saved} there, and {wanted} is wanted"
    return None


def damage(described: Description, tree: Any) -> str | None:
    """The first array that is not what was described, to the bit; None if all are."""
    for path, now in describe(tree).items():
        if now != described[path]:
            return f"the numbers of {path} are not those that were saved"
    return None


def with_types(described: Description, tree: Any) -> Any:
    """An abstract tree with the types of the described arrays."""

    def typed(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jnp.dtype(described[_name(path)]["dtype"])
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(typed, tree)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree under names like lm/layers/q/kernel."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shape_and_dtype(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": jnp.dtype(leaf.dtype).name}


@jax.jit  # by leaf: parameters and their moments share programs
def _leaf(leaf: jax.Array) -> jax.Array:
    """See the module's docstring. The mask of a position is a sum over axes of hashed indices.

    There is no index of all the leaf's words, which could overflow 32 bits: a leaf of any size has
    masks that are as good as random, and two equal ones stand nowhere in particular.
    """
    words = _words(leaf)
    mask = jnp.uint32(0)
    for axis, size in enumerate(words.shape):
        hashed = _mix(lax.iota(jnp.uint32, size) + _uint32((axis + 1) * _AXIS_SEED))
        mask += lax.broadcast_in_dim(hashed, words.shape, (axis,))
    sums = _mix(words ^ mask)
    if sums.ndim > 1:
        # XLA's CPU backend fuses a sum over the few layers, which leaves little to keep, but not
        # one over the whole leaf, for which it would store every summand.
        sums = lax.optimization_barrier(jnp.sum(sums, axis=0, dtype=jnp.uint32))
    return jnp.sum(sums, dtype=jnp.uint32)


def _words(leaf: jax.Array) -> jax.Array:
    """The bits as uint32, one for each element (two, on a last axis, for elements of 64 bits)."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = min(4, leaf.dtype.itemsize)
    return lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)


def _mix(words: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit of the result depends on every bit.

    The rounds are MurmurHash3's finalizer; the constants are "lowbias32" of C. Wellons, "Prospecting
    for Hash Functions" (2018).
    """
    words ^= words >> 16
    words *= _uint32(0x7FEB352D)
    words ^= words >> 15
    words *= _uint32(0x846CA68B)
    return words ^ (words >> 16)


def _uint32(value: int) -> np.uint32:
    return np.uint32(value % 2**32)


def together(read: Callable[[], T]) -> T:
    """The result of a read that succeeds on all processes; where one fails, all of them fail.

    Raises:
      Damaged: on all processes, if damage was found and nothing else was wrong.
      UserError: a process could not read for another reason; on itself that reason, whatever it is.
    """
    result: T
    failure: Exception | None = None
    try:
        result = read()
    except Exception as error:  # the others would wait for this process for ever
        failure = error
    if jax.process_count() > 1:
        kind = 0 if failure is None else 1 if isinstance(failure, Damaged) else 2
        kinds = multihost_utils.process_allgather(np.int32(kind))
        worst = kinds.max()
        if kind < worst:  # damage here may be a disk that fails elsewhere in another way
            message = f"process {int(kinds.argmax())} cannot read its part"
            failure = UserError(f"{message}; see its error") if worst == 2 else Damaged(message)
    if failure is not None:
        raise failure
    return result
