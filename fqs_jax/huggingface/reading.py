"""Reading of safetensors files into a parameter tree, one tensor at a time."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from fqs_jax.huggingface.tensors import EMBEDDING, HEAD, INDEX, THOUGHT, WEIGHTS, leaf_shapes, slots
from fqs_jax.model import placement
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import inputs, sharding
from fqs_jax.runtime.errors import UserError


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
        have another shape than `config` implies.
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
    for path, layer, array in tensors:
        target = targets[path]
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


def iterate_tensors(
    folder: str | Path, config: ModelConfig
) -> Iterator[tuple[tuple[str, ...], int | None, np.ndarray]]:
    """Yield each tensor of a folder once: (path in the tree, layer or None, array in our layout).

    This call checks all names, shapes and types before the first tensor is read. Arrays have their
    stored type (bfloat16, float16 or float32) and may be transposed views.

    Raises:
      UserError: the same errors as `load_params`.
    """
    return _iterate(_find_tensors(Path(folder), config), config)


def _iterate(
    sources: dict[str, Source], config: ModelConfig
) -> Iterator[tuple[tuple[str, ...], int | None, np.ndarray]]:
    targets = slots(config)
    for file in dict.fromkeys(source.file for source in sources.values()):
        with _opened(file) as handle:
            for name, source in sources.items():
                if source.file == file:
                    slot = targets[name]
                    yield slot.path, slot.layer, slot.from_stored(handle.get_tensor(source.name))


def _find_tensors(folder: Path, config: ModelConfig) -> dict[str, Source]:
    """The location of each expected tensor, after all checks that need only the file headers."""
    expected = {name: slot.shape for name, slot in slots(config).items()}
    # A tied checkpoint may store its matrix as embedding, as head, or as both.
    known = {**expected, HEAD: expected[EMBEDDING]}
    if not config.tied_embeddings:
        known = expected
    found: dict[str, Source] = {}
    for file in _weight_files(folder):
        with _opened(file) as handle:
            for stored_name in list(handle.keys()):
                if stored_name.endswith("rotary_emb.inv_freq"):
                    continue  # a buffer that old versions saved; the config determines it
                name = stored_name if stored_name in known else f"model.{stored_name}"
                if name not in known:
                    raise UserError(f"{file}: tensor {stored_name} is not one of this architecture")
                if name in found:
                    raise UserError(f"{file}: tensor {name} is also in {found[name].file.name}")
                _check_header(file, name, handle.get_slice(stored_name), known[name])
                found[name] = Source(file, stored_name)
    if config.tied_embeddings:
        _merge_tied(found)
    if missing := [name for name in expected if name not in found]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{folder}: tensor {missing[0]} of shape {expected[missing[0]]}{more} is missing"
        )
    return found


def _check_header(file: Path, name: str, header: Any, shape: tuple[int, ...]) -> None:
    if (stored := tuple(header.get_shape())) != shape:
        raise UserError(f"{file}: tensor {name} has shape {stored}, config.json implies {shape}")
    if (dtype := header.get_dtype()) not in ("F32", "BF16", "F16"):
        raise UserError(f"{file}: tensor {name} has type {dtype}, expected F32, BF16 or F16")


def _merge_tied(found: dict[str, Source]) -> None:
    """Keep only the embedding's location of a matrix that is both embedding and head."""
    head = found.pop(HEAD, None)
    if head is None or found.setdefault(EMBEDDING, head) is head:
        return
    embedding = found[EMBEDDING]
    with _opened(head.file) as head_file, _opened(embedding.file) as embedding_file:
        head_rows = head_file.get_slice(head.name)
        embedding_rows = embedding_file.get_slice(embedding.name)
        num_rows = head_rows.get_shape()[0]
        for start in range(0, num_rows, 4096):
            block = slice(start, min(start + 4096, num_rows))
            if not np.array_equal(head_rows[block], embedding_rows[block]):
                raise UserError(
                    f"{head.file}: {head.name} differs from {embedding.name} although config.json "
                    "has tie_word_embeddings true; set it to false if both are used"
                )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: model.safetensors, or the files that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        weight_map = inputs.read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{folder / INDEX} has no weight_map")
        shards = sorted({str(shard) for shard in weight_map.values()})
        for shard in shards:
            if Path(shard).name != shard:
                raise UserError(f"{folder / INDEX} names {shard!r}, which is not a file name")
            if not (folder / shard).is_file():
                raise UserError(f"{folder / shard} is missing, although {INDEX} names it")
        return [folder / shard for shard in shards]
    if any(path.suffix in (".bin", ".pt", ".pth") for path in folder.glob("*")):
        raise UserError(
            f"{folder} has only pickled weights, and only safetensors is read; convert it with "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file, opened lazily; all its errors become a UserError of one line."""
    try:
        with safe_open(file, framework="np") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or incomplete, fetch it again ({error})") from error


def load_thought(folder: str | Path) -> Params | None:
    """The `thought` parameter tree that `export` wrote beside the weights; None if it is missing.

    Raises:
      UserError: the file is damaged.
    """
    file = Path(folder) / THOUGHT
    if not file.exists():
        return None
    try:
        return traverse_util.unflatten_dict(load_file(file), sep=".")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or incomplete, fetch it again ({error})") from error


def load_thought_settings(folder: str | Path) -> dict[str, Any]:
    """The settings that `export` wrote into the header of the thought parameters' file.

    Raises:
      UserError: the file is missing or damaged.
    """
    with _opened(Path(folder) / THOUGHT) as handle:
        settings: dict[str, Any] = json.loads((handle.metadata() or {}).get("settings", "{}"))
    return settings
