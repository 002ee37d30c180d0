"""The table of tensor names and layouts, used for reading and writing."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fqs_jax.model.config import ModelConfig
from fqs_jax.model.placement import PARAMETERS

# File names in a folder.
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
THOUGHT = "thought.safetensors"


class Tensor(NamedTuple):
    """A row of the table, with axes as letters (model/placement.py).

    name: name of the stored tensor; {} is the number of the layer.
    path: path in the parameter tree, where leaves of layers have an additional leading axis L.
    stored: axes of the stored tensor; a group of joined letters is one dimension.
    exists: whether a model has it.
    """

    name: str
    path: str
    stored: str
    exists: Callable[[ModelConfig], bool] = lambda config: True

    @property
    def ours(self) -> list[str]:
        """The axes of the leaf in the parameter tree, without L."""
        return PARAMETERS[f"lm/{self.path}"].removeprefix("L ").split()


def _qkv_bias(config: ModelConfig) -> bool:
    return config.qkv_bias


def _norm_before(config: ModelConfig) -> bool:
    return config.norms != "after"


def _norm_after(config: ModelConfig) -> bool:
    return config.norms != "before"


def _head_norm(config: ModelConfig) -> bool:
    return config.qk_norm == "head"


def _projection_norm(config: ModelConfig) -> bool:
    return config.qk_norm == "projection"


_LAYER_NAME = "model.layers.{}."
_ATTENTION, _MLP = f"{_LAYER_NAME}self_attn.", f"{_LAYER_NAME}mlp."
TENSORS = (
    Tensor("model.embed_tokens.weight", "embed/embedding", "V D"),
    Tensor(f"{_LAYER_NAME}input_layernorm.weight", "layers/attn_norm/scale", "D", _norm_before),
    Tensor(f"{_ATTENTION}q_proj.weight", "layers/q/kernel", "NH D"),
    Tensor(f"{_ATTENTION}q_proj.bias", "layers/q/bias", "NH", _qkv_bias),
    Tensor(f"{_ATTENTION}k_proj.weight", "layers/k/kernel", "GH D"),
    Tensor(f"{_ATTENTION}k_proj.bias", "layers/k/bias", "GH", _qkv_bias),
    Tensor(f"{_ATTENTION}v_proj.weight", "layers/v/kernel", "GH D"),
    Tensor(f"{_ATTENTION}v_proj.bias", "layers/v/bias", "GH", _qkv_bias),
    Tensor(f"{_ATTENTION}q_norm.weight", "layers/q_head_norm/scale", "H", _head_norm),
    Tensor(f"{_ATTENTION}k_norm.weight", "layers/k_head_norm/scale", "H", _head_norm),
    Tensor(f"{_ATTENTION}q_norm.weight", "layers/q_norm/scale", "NH", _projection_norm),
    Tensor(f"{_ATTENTION}k_norm.weight", "layers/k_norm/scale", "GH", _projection_norm),
    Tensor(f"{_ATTENTION}o_proj.weight", "layers/o/kernel", "D NH"),
    Tensor(f"{_ATTENTION}o_proj.bias", "layers/o/bias", "D", lambda config: config.o_bias),
    Tensor(
        f"{_LAYER_NAME}post_attention_layernorm.weight",
        "layers/attn_out_norm/scale",
        "D",
        _norm_after,
    ),
    Tensor(
        f"{_LAYER_NAME}post_attention_layernorm.weight",  # a norm after the MLP changes the name
        "layers/mlp_norm/scale",
        "D",
        lambda config: config.norms == "before",
    ),
    Tensor(
        f"{_LAYER_NAME}pre_feedforward_layernorm.weight",
        "layers/mlp_norm/scale",
        "D",
        lambda config: config.norms == "both",
    ),
    Tensor(f"{_MLP}gate_proj.weight", "layers/gate/kernel", "F D"),
    Tensor(f"{_MLP}up_proj.weight", "layers/up/kernel", "F D"),
    Tensor(f"{_MLP}down_proj.weight", "layers/down/kernel", "D F"),
    Tensor(
        f"{_LAYER_NAME}post_feedforward_layernorm.weight",
        "layers/mlp_out_norm/scale",
        "D",
        _norm_after,
    ),
    Tensor("model.norm.weight", "final_norm/scale", "D"),
    Tensor("lm_head.weight", "head/kernel", "V D", lambda config: not config.tied_embeddings),
)
EMBEDDING, HEAD = TENSORS[0].name, TENSORS[-1].name

# The name of a layer's tensor; its number has no leading zeros and at most nine digits.
_LAYER = re.compile(r"(model\.layers\.)(0|[1-9][0-9]{0,8})(\..*)")

LeafPath = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A stored tensor's place in the parameter tree.

    Attributes:
      path: path of the leaf.
      layer: index on the leaf's leading axis L; None for a leaf without it.
      shape: shape of the stored tensor.
      split_shape: the same shape with joined dimensions split.
      order: permutation of axes: axis i of the leaf is axis order[i] of split_shape.
      offset: the leaf is the stored tensor plus this.
    """

    path: LeafPath
    layer: int | None
    shape: tuple[int, ...]
    split_shape: tuple[int, ...]
    order: tuple[int, ...]
    offset: float = 0.0

    def from_stored(self, stored: np.ndarray) -> np.ndarray:
        """The stored tensor in the layout of the leaf: a view, or float32 if there is an offset."""
        ours = stored.reshape(self.split_shape).transpose(self.order)
        return ours.astype(np.float32) + np.float32(self.offset) if self.offset else ours

    def to_stored(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `from_stored`; a view if possible, so in general not contiguous."""
        stored = ours.transpose(np.argsort(self.order)).reshape(self.shape)
        return stored.astype(np.float32) - np.float32(self.offset) if self.offset else stored


def slots(config: ModelConfig) -> dict[str, Slot]:
    """The slot of each tensor of a checkpoint, by name, in the usual order of a checkpoint."""
    return dict(iterate_slots(config))


def iterate_slots(config: ModelConfig) -> Iterator[tuple[str, Slot]]:
    """Name and slot of each tensor, one by one: a config from outside may have any number of layers."""
    first, *last = [row for row in _rows(config) if "{}" not in row.name]
    yield first.name, _slot(first, None, config)
    layer_rows = [row for row in _rows(config) if "{}" in row.name]
    for layer in range(config.num_layers):
        for row in layer_rows:
            yield row.name.format(layer), _slot(row, layer, config)
    for row in last:
        yield row.name, _slot(row, None, config)


def find_slot(name: str, config: ModelConfig) -> Slot | None:
    """The slot of one tensor by its name; None if the architecture has no such tensor."""
    layer = None
    if found := _LAYER.fullmatch(name):
        layer, name = int(found[2]), f"{found[1]}{{}}{found[3]}"
        if layer >= config.num_layers:
            return None
    rows = [row for row in _rows(config) if row.name == name]
    return _slot(rows[0], layer, config) if rows else None


def num_tensors(config: ModelConfig) -> int:
    """The number of tensors of a checkpoint."""
    layered = sum("{}" in row.name for row in _rows(config))
    return config.num_layers * layered + len(_rows(config)) - layered


def _rows(config: ModelConfig) -> list[Tensor]:
    return [row for row in TENSORS if row.exists(config)]


def _slot(row: Tensor, layer: int | None, config: ModelConfig) -> Slot:
    sizes = {
        "V": config.vocab_size,
        "D": config.width,
        "N": config.num_heads,
        "G": config.num_kv_heads,
        "H": config.head_dim,
        "F": config.mlp_dim,
    }
    axes = row.stored.replace(" ", "")
    return Slot(
        path=tuple(row.path.split("/")),
        layer=layer,
        shape=tuple(math.prod(sizes[axis] for axis in group) for group in row.stored.split()),
        split_shape=tuple(sizes[axis] for axis in axes),
        order=tuple(axes.index(axis) for axis in row.ours),
        offset=config.stored_norm_offset if row.path.endswith("/scale") else 0.0,
    )


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the stored tensors of a checkpoint, in order."""
    return {name: slot.shape for name, slot in slots(config).items()}


def leaf_shapes(config: ModelConfig) -> dict[LeafPath, tuple[int, ...]]:
    """Shapes of the parameter tree's leaves, by path."""
    shapes = {}
    for row in _rows(config):
        stack = (config.num_layers,) if "{}" in row.name else ()
        slot = _slot(row, None, config)
        shapes[slot.path] = stack + tuple(slot.split_shape[i] for i in slot.order)
    return shapes


def is_by_token(path: LeafPath, config: ModelConfig) -> bool:
    """True for the embedding table, unless it is the output head too: a text reads its tokens' rows alone."""
    return path == ("embed", "embedding") and not config.tied_embeddings
