"""The tensors of a GGUF file as the parameters of a model, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fqs_jax.gguf_files.architectures import EMBEDDING, HEAD, ROPE_FACTORS
from fqs_jax.gguf_files.header import Header, Tensor
from fqs_jax.huggingface import finite
from fqs_jax.huggingface.tensors import (
    find_slot,
    is_by_token,
    iterate_slots,
    leaf_shapes,
    num_tensors,
)
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

# Names in a GGUF file and in a Hugging Face folder; {} is the number of the layer.
_NAMES = {
    EMBEDDING: "model.embed_tokens.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_q.bias": "model.layers.{}.self_attn.q_proj.bias",
    "blk.{}.attn_q_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_k.bias": "model.layers.{}.self_attn.k_proj.bias",
    "blk.{}.attn_k_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_v.bias": "model.layers.{}.self_attn.v_proj.bias",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
_PERMUTED = re.compile(r".*\.attn_[qk]\.(weight|bias)")
_LAYER = re.compile(r"(blk|model\.layers)\.(0|[1-9][0-9]{0,8})\.(.*)")


class Stored(NamedTuple):
    """A tensor and its name in a Hugging Face folder."""

    name: str
    tensor: Tensor


def standard_name(name: str, names: dict[str, str] = _NAMES) -> str | None:
    """The name in a Hugging Face folder of a tensor in a GGUF file; None if it has none."""
    if match := _LAYER.fullmatch(name):
        found = names.get(f"{match[1]}.{{}}.{match[3]}")
        return found and found.format(match[2])
    return names.get(name)


def read_values(tensor: Tensor) -> np.ndarray:
    """The values of a tensor as float32, in its shape.

    Raises:
      UserError: the file can no longer be read.
    """
    with inputs.open_file(tensor.file) as file:
        file.seek(tensor.start)
        data = file.read(tensor.num_bytes)
    if len(data) < tensor.num_bytes:
        raise UserError(f"{tensor.place} cannot be read: the file has become shorter")
    rows = np.frombuffer(data, np.uint8).reshape(*tensor.shape[:-1], -1)
    with np.errstate(all="ignore"):  # of scales that are no numbers, which are found later
        return gguf.dequantize(rows, tensor.kind).reshape(tensor.shape)


def unpermuted(values: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a q or k projection in the order of Hugging Face folders.

    Rotary embeddings turn pairs of components. llama.cpp puts the two of a pair side by side; Hugging
    Face folders have the first ones of all pairs of a head, and then the second ones.

    Args:
      values: [heads * H, ...].
    """
    pairs = values.reshape(-1, head_dim // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def read_params(model: Header, config: ModelConfig, permuted: bool, dtype: str) -> Params:
    """The `lm` parameter tree of a model, in host memory.

    Names and shapes of all tensors are checked before the first one is read.

    Args:
      permuted: as in `architectures.Architecture`.
      dtype: the type of the arrays.

    Raises:
      UserError: tensors are missing, unexpected or of another shape than the metadata implies; or
        values are NaN, infinite, or too large for `dtype`.
    """
    stored = list(_find(model, config))
    # Empty arrays take memory only as they are filled.
    leaves = {
        path: np.empty(shape, jnp.dtype(dtype)) for path, shape in leaf_shapes(config).items()
    }
    for name, tensor in stored:
        slot = find_slot(name, config)
        assert slot is not None  # `_find` has checked it
        values = read_values(tensor)
        by_token = is_by_token(slot.path, config)
        finite.check_finite(values, tensor.place, by_token)
        finite.check_fits(values, dtype, tensor.place, by_token)
        if permuted and _PERMUTED.fullmatch(tensor.name):
            values = unpermuted(values, config.head_dim)
        leaf = leaves[slot.path]
        leaf[... if slot.layer is None else slot.layer] = slot.from_stored(values)
    return traverse_util.unflatten_dict(leaves)


def _find(model: Header, config: ModelConfig) -> Iterator[Stored]:
    """All tensors of the model, in the order of the file.

    The work grows with the number of tensors in the file, not with the sizes in its metadata.
    """
    found = set()
    for tensor in model.tensors.values():
        if tensor.name == ROPE_FACTORS:
            continue  # config.json has them
        name = standard_name(tensor.name)
        slot = find_slot(name, config) if name else None
        if name is None or slot is None:
            raise UserError(f"{tensor.place} is not one of this architecture")
        if tensor.shape != slot.shape:
            raise UserError(
                f"{tensor.place} has shape {tensor.shape}, the metadata implies {slot.shape}"
            )
        found.add(name)
        yield Stored(name, tensor)
    if missing := num_tensors(config) - len(found):
        raise _missing(model.path, found, missing, config)


def _missing(path: Path, found: set[str], count: int, config: ModelConfig) -> UserError:
    """The error about tensors that the file lacks; it names the first."""
    theirs = {standard: name for name, standard in _NAMES.items()}
    name, slot = next(item for item in iterate_slots(config) if item[0] not in found)
    more = f" (and {count - 1} more)" if count > 1 else ""
    return UserError(
        f"{inputs.name(path)}: tensor {standard_name(name, theirs) or name} of shape {slot.shape}{more} is "
        f"missing; its metadata has {config.num_layers} layers"
    )
