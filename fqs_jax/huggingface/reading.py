"""Reading of safetensors files into a parameter tree, one tensor at a time."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fqs_jax.huggingface import contents, finite, headers, kinds
from fqs_jax.huggingface.tensors import (
    EMBEDDING,
    HEAD,
    INDEX,
    WEIGHTS,
    find_slot,
    is_by_token,
    iterate_slots,
    leaf_shapes,
    num_tensors,
    slots,
)
from fqs_jax.model import placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import inputs, sharding
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.progress import LONG_SECONDS, Progress

# Ends of the names of quantised tensors: GPTQ, AWQ, bitsandbytes, fp8.
_QUANTISED = (
    *(".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".absmax", ".quant_map"),
    *(".SCB", ".weight_format", ".weight_scale", ".weight_scale_inv", ".input_scale"),
)


# Path in the tree, layer or None, array in our layout.
Placed: TypeAlias = tuple[tuple[str, ...], int | None, np.ndarray]


class Source(NamedTuple):
    """The location of a stored tensor: the file and its name in that file."""

    file: Path
    name: str


def load_params(
    folder: str | Path, config: ModelConfig, dtype: str = "float32", mesh: Mesh | None = None
) -> Params:
    """The `lm` parameter tree of a Hugging Face folder, as arrays of type `dtype` on a mesh.

    Each tensor goes directly to the devices that hold a part of it, so no process has more than one
    tensor in its own memory.

    Args:
      mesh: the mesh to place the arrays on; None = one device.

    Raises:
      UserError: files are missing, damaged or not safetensors; tensors are missing, unexpected, or
        have another shape than `config` implies; values are NaN or infinite, or too large for `dtype`.
    """
    tensors = iterate_tensors(folder, config)
    shapes = {
        path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for path, shape in leaf_shapes(config).items()
    }
    tree = {"lm": traverse_util.unflatten_dict(shapes)}
    placed = placement.placed(tree, mesh or sharding.single_device())["lm"]
    targets = traverse_util.flatten_dict(placed)
    leaves: dict[tuple[str, ...], jax.Array] = {}
    for path, layer, array in _with_progress(tensors, Path(folder)):
        target = targets[path]
        if jnp.finfo(target.dtype).max < jnp.finfo(array.dtype).max:
            of_layer = "" if layer is None else f" of layer {layer}"
            place = f"{inputs.name(folder)}: {'/'.join(path)}{of_layer}"
            finite.check_fits(array, target.dtype, place, is_by_token(path, config))
        if layer is None:
            leaves[path] = _place(array, target.dtype, target.sharding)
            continue
        mesh_, axes = target.sharding.mesh, target.sharding.spec
        piece = _place(array, target.dtype, NamedSharding(mesh_, PartitionSpec(*axes[1:])))
        if path not in leaves:
            empty = jax.jit(
                functools.partial(jnp.zeros, target.shape, target.dtype),
                out_shardings=target.sharding,
            )
            leaves[path] = empty()
        leaves[path] = _inserter(target.sharding)(leaves[path], piece, layer)
    return traverse_util.unflatten_dict(leaves)


def _with_progress(tensors: Iterator[Placed], folder: Path) -> Iterator[Placed]:
    """The same tensors, with a bar of the bytes that were read if that takes long."""
    whole, done = sum(file.stat().st_size for file in _weight_files(folder)), 0
    total = max(1, round(whole / 1e6))
    with Progress("reading weights, MB", 0, total, after=LONG_SECONDS) as bar:
        for placed in tensors:
            yield placed
            done += placed[-1].nbytes
            bar.advance_to(min(total, round(done / 1e6)))


def _place(array: np.ndarray, dtype: Any, target: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(
        array.shape, target, lambda index: np.ascontiguousarray(array[index], dtype)
    )


@functools.cache
def _inserter(target: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """A function that writes a layer into a stacked leaf, in place."""

    def insert(leaf: jax.Array, piece: jax.Array, layer: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(leaf, piece, layer, axis=0)

    return jax.jit(insert, donate_argnums=0, out_shardings=target)


def iterate_tensors(folder: str | Path, config: ModelConfig) -> Iterator[Placed]:
    """Yield each tensor of a folder once: (path in the tree, layer or None, array in our layout).

    This call checks all names, shapes and types before the first tensor is read. Arrays have their
    stored type (bfloat16, float16 or float32; float32 for norms with an offset) and may be transposed views.

    Raises:
      UserError: the same errors as `load_params`.
    """
    return _iterate(_find_tensors(Path(folder), config), config)


def check_weights(folder: str | Path, config: ModelConfig) -> None:
    """Check names, shapes and types of a folder's tensors without reading them.

    Raises:
      UserError: the same errors as `load_params`, but for the values.
    """
    _find_tensors(Path(folder), config)


def _iterate(sources: dict[str, Source], config: ModelConfig) -> Iterator[Placed]:
    targets = slots(config)
    for file in dict.fromkeys(source.file for source in sources.values()):
        with headers.opened(file) as handle:
            for name, source in sources.items():
                if source.file == file:
                    slot = targets[name]
                    stored = handle.get_tensor(source.name)
                    place = headers.place(file, name)
                    finite.check_finite(stored, place, is_by_token(slot.path, config))
                    yield slot.path, slot.layer, slot.from_stored(stored)


def _find_tensors(folder: Path, config: ModelConfig) -> dict[str, Source]:
    """The location of each expected tensor, after all checks that need only the file headers.

    The work grows with the headers, not with the sizes in config.json, which may be nonsense.
    """
    found: dict[str, Source] = {}
    files = _weight_files(folder)
    within = kinds.is_within(name for file in files for name in _names(file))
    for file in files:
        with headers.opened(file) as handle:
            for stored_name in list(handle.keys()):
                if stored_name.endswith("rotary_emb.inv_freq"):
                    continue  # a buffer that old versions saved; the config determines it
                if within and not kinds.is_text(stored_name):
                    continue  # of the parts that read images or sound
                name, shape = _expected(stored_name, config, file)
                if name in found:
                    raise UserError(
                        f"{headers.place(file, name)} is also in {found[name].file.name}"
                    )
                _check_header(file, name, handle.get_slice(stored_name), shape)
                found[name] = Source(file, stored_name)
    if config.tied_embeddings:
        _merge_tied(found)
    if num_missing := num_tensors(config) - len(found):
        name, slot = next(item for item in iterate_slots(config) if item[0] not in found)
        more = f" (and {num_missing - 1} more)" if num_missing > 1 else ""
        layers = f"; config.json has num_hidden_layers {config.num_layers}" if more else ""
        raise UserError(
            f"{inputs.name(folder)}: tensor {name} of shape {slot.shape}{more} is missing{layers}"
        )
    return found


def _names(file: Path) -> list[str]:
    with headers.opened(file) as handle:
        return list(handle.keys())


def _expected(stored_name: str, config: ModelConfig, file: Path) -> tuple[str, tuple[int, ...]]:
    """The full name and the shape of a stored tensor, which may lack the prefix `model.`.

    Raises:
      UserError: the architecture has no such tensor.
    """
    text_name = kinds.text_name(stored_name)
    for name in (text_name, f"model.{text_name}"):
        # A tied checkpoint may store its matrix as embedding, as head, or as both.
        alias = EMBEDDING if config.tied_embeddings and name == HEAD else name
        if (slot := find_slot(alias, config)) is not None:
            return name, slot.shape
    if stored_name.endswith(_QUANTISED):
        raise UserError(
            f"{headers.place(file, stored_name)} belongs to quantised weights, which are not supported; use "
            "the unquantised checkpoint"
        )
    raise UserError(f"{headers.place(file, stored_name)} is not one of this architecture")


def _check_header(file: Path, name: str, header: Any, shape: tuple[int, ...]) -> None:
    if (stored := tuple(header.get_shape())) != shape:
        shown = printable(str(stored), 100)
        raise UserError(
            f"{headers.place(file, name)} has shape {shown}, config.json implies {shape}"
        )
    headers.check_type(file, name, header)


def _merge_tied(found: dict[str, Source]) -> None:
    """Keep only the embedding's location of a matrix that is both embedding and head."""
    head = found.pop(HEAD, None)
    if head is None or found.setdefault(EMBEDDING, head) is head:
        return
    embedding = found[EMBEDDING]
    with headers.opened(head.file) as head_file, headers.opened(embedding.file) as embedding_file:
        head_rows = head_file.get_slice(head.name)
        embedding_rows = embedding_file.get_slice(embedding.name)
        num_rows = head_rows.get_shape()[0]
        for start in range(0, num_rows, 4096):
            block = slice(start, min(start + 4096, num_rows))
            if not np.array_equal(head_rows[block], embedding_rows[block]):
                raise UserError(
                    f"{inputs.name(head.file)}: {head.name} differs from {embedding.name} although "
                    "config.json has tie_word_embeddings true; set it to false if both are used"
                )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: model.safetensors, or the files that the index names."""
    if os.path.lexists(folder / WEIGHTS):
        return [folder / WEIGHTS]
    if not os.path.lexists(folder / INDEX):
        raise contents.no_weights(folder)
    index = inputs.name(folder / INDEX)
    weight_map = inputs.read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        shown = printable(shard, 100)
        if not shard or Path(shard).name != shard or shard == ".." or "\0" in shard:
            raise UserError(f"{index} names {shown!r}, which is not a file name")
        if not shard.endswith(".safetensors"):
            raise UserError(f"{index} names {shown!r}, and only safetensors is read")
        if not (folder / shard).exists():
            raise UserError(
                f"{inputs.name(folder / shard)} is missing, although {INDEX} names it; fetch it too"
            )
    return [folder / shard for shard in shards]
