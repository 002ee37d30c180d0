"""Fingerprints of arrays, which show whether a restored array has exactly the saved bits.

A leaf's fingerprint is the sum, modulo 2**32, of mix(word ^ mask(position)) over its words. Integer
sums do not depend on the order, so the fingerprint is the same on every mesh. `mix` is a bijection, so
a change within one word always changes the sum; other changes (swapped or zeroed blocks) go unnoticed
with probability 2**-32 per leaf.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.orbax_errors import reason
from fqs_jax.runtime.processes import settled

T = TypeVar("T")


class Damaged(Exception):
    """A checkpoint cannot be read, or differs from the saved one; the message is one line."""


# {path: {"shape": [...], "dtype": name, "fingerprint": int}} of the leaves of a tree, as JSON.
Description = dict[str, dict[str, Any]]

_AXIS_SEED = 0x9E3779B9  # 2**32 / golden ratio: axes get seeds that are far from each other


def fingerprint(tree: Any) -> Any:
    """The fingerprint, a uint32 scalar, of every array of a tree; sharding does not change it.

    Nothing is gathered: every device sums its own shards, and only sums are exchanged.
    """
    return jax.tree.map(lambda leaf: settled(_leaf(leaf)), tree)


def record(progress: dict[str, Any], items: dict[str, Any]) -> dict[str, Any]:
    """The JSON object that is saved beside trees of arrays.

    It has a digest of its own, because fingerprints may be damaged too.

    Args:
      progress: a small JSON object, saved with it.
      items: the trees by name.
    """
    arrays = {item: describe(tree) for item, tree in items.items()}
    return {"progress": progress, "arrays": arrays, "sha256": _digest(progress, arrays)}


def open_record(record: Any) -> tuple[dict[str, Any], dict[str, Description]]:
    """The progress and the descriptions of the items that `record` put together.

    Raises:
      Damaged: it differs from the saved one.
    """
    if not isinstance(record, dict):
        raise Damaged("its progress is no JSON object")
    progress, arrays = record.get("progress"), record.get("arrays")
    if record.get("sha256") != _digest(progress, arrays):
        raise Damaged("its progress is not what was saved")
    if not isinstance(progress, dict) or not _describes_items(arrays):
        raise Damaged("its progress does not describe a checkpoint")
    return progress, arrays


def _describes_items(arrays: Any) -> TypeGuard[dict[str, Description]]:
    """True if a JSON value has the form of the descriptions of all items."""
    if not isinstance(arrays, dict):
        return False
    leaves = [leaf for item in arrays.values() if isinstance(item, dict) for leaf in item.values()]
    return all(isinstance(item, dict) for item in arrays.values()) and all(
        isinstance(leaf, dict) and {"shape", "dtype", "fingerprint"} <= leaf.keys()
        for leaf in leaves
    )


def describe(tree: Any) -> Description:
    """Shapes, types and fingerprints of a tree's arrays, by path."""
    values = jax.device_get(fingerprint(tree))
    return {
        path: {
            "shape": list(leaf.shape),
            "dtype": jnp.dtype(leaf.dtype).name,
            "fingerprint": int(value),
        }
        for (path, leaf), value in zip(by_path(tree).items(), jax.tree.leaves(values), strict=True)
    }


def digest(tree: Any) -> str:
    """One fingerprint of all arrays of a tree, their paths, shapes and types: 16 hexadecimal digits."""
    return _digest(describe(tree))[:16]


def misfit(described: Description, tree: Any) -> str | None:
    """The first difference in paths or shapes between described arrays and an (abstract) tree.

    None if there is none. Types may differ, because they can be converted.
    """
    leaves = by_path(tree)
    for path in described.keys() - leaves.keys():
        return f"{path} is in the checkpoint, but not expected"
    for path in leaves.keys() - described.keys():
        return f"{path} is not in the checkpoint"
    for path, leaf in leaves.items():
        saved, wanted = tuple(described[path]["shape"]), tuple(leaf.shape)
        if saved != wanted:
            return f"{path} has shape {saved} in the checkpoint, but {wanted} is expected"
    return None


def damage(described: Description, tree: Any) -> str | None:
    """A message about the first array that differs from its description; None if all are equal."""
    for path, now in describe(tree).items():
        if now != described[path]:
            return f"{path} differs from the array that was saved"
    return None


def with_types(described: Description, tree: Any) -> Any:
    """The abstract tree with the types of the described arrays."""

    def typed(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jnp.dtype(described[_name(path)]["dtype"])
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(typed, tree)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, such as lm/layers/q/kernel."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


@jax.jit  # by leaf: parameters and their moments share programs
def _leaf(leaf: jax.Array) -> jax.Array:
    """The fingerprint of one array, as the module's docstring defines it.

    The mask of a position is a sum over axes of hashed indices, because one index over all words of a
    leaf could overflow 32 bits. The masks are as good as random for a leaf of any size.
    """
    words = _words(leaf)
    mask = jnp.uint32(0)
    for axis, size in enumerate(words.shape):
        hashed = _mix(lax.iota(jnp.uint32, size) + _uint32((axis + 1) * _AXIS_SEED))
        mask += lax.broadcast_in_dim(hashed, words.shape, (axis,))
    sums = _mix(words ^ mask)
    if sums.ndim > 1:
        # XLA's CPU backend would store every summand of one sum over the whole leaf. It fuses a sum
        # over the first axis (layers), and the result is small.
        sums = lax.optimization_barrier(jnp.sum(sums, axis=0, dtype=jnp.uint32))
    return jnp.sum(sums, dtype=jnp.uint32)


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of an array as uint32, one for each element (two, on a last axis, for 64 bits)."""
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


@contextlib.contextmanager
def reading(step: Path) -> Iterator[None]:
    """Let whatever Orbax raises about damaged files, which is almost anything, be `Damaged`.

    Args:
      step: the folder of the checkpoint that is read.

    Raises:
      Damaged: the step cannot be read.
      UserError: it may not be read.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # not the checkpoint's fault
    except Exception as error:
        if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
            raise UserError(
                f"cannot read step {step.name} of {step.parent}: {reason(error)}"
            ) from None
        raise Damaged(f"it cannot be read ({reason(error)})") from error


def together(read: Callable[[], T]) -> T:
    """The result of a read on this process, if it succeeds on all of them; otherwise all of them fail.

    Raises:
      Damaged: damage was found and nothing else was wrong; raised on all processes.
      UserError: a process failed for any other reason. The failing process raises its own exception;
        the others raise this.
    """
    result: T
    failure: Exception | None = None
    try:
        result = read()
    except Exception as error:  # raised below: the others wait for this process to take part
        failure = error
    if jax.process_count() > 1:
        kind = 0 if failure is None else 1 if isinstance(failure, Damaged) else 2
        kinds = multihost_utils.process_allgather(np.int32(kind))
        worst = kinds.max()
        if kind < worst:  # a failing disk may show as damage here and as another error elsewhere
            message = f"process {int(kinds.argmax())} cannot read its part"
            failure = UserError(f"{message}; see its error") if worst == 2 else Damaged(message)
    if failure is not None:
        raise failure
    return result
