"""The table of tensor names and layouts, used for reading and writing."""

from __future__ import annotations

import dataclasses
import math
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
    """

    name: str
    path: str
    stored: str

    @property
    def ours(self) -> list[str]:
        """The axes of the leaf in the parameter tree, without L."""
        return PARAMETERS[f"lm/{self.path}"].removeprefix("L ").split()


TENSORS = (
    Tensor("model.embed_tokens.weight", "embed/embedding", "V D"),
    Tensor("model.layers.{}.input_layernorm.weight", "layers/attn_norm/scale", "D"),
    Tensor("model.layers.{}.self_attn.q_proj.weight", "layers/q/kernel", "NH D"),
    Tensor("model.layers.{}.self_attn.q_proj.bias", "layers/q/bias", "NH"),
    Tensor("model.layers.{}.self_attn.k_proj.weight", "layers/k/kernel", "GH D"),
    Tensor("model.layers.{}.self_attn.k_proj.bias", "layers/k/bias", "GH"),
    Tensor("model.layers.{}.self_attn.v_proj.weight", "layers/v/kernel", "GH D"),
    Tensor("model.layers.{}.self_attn.v_proj.bias", "layers/v/bias", "GH"),
    Tensor("model.layers.{}.self_attn.o_proj.weight", "layers/o/kernel", "D NH"),
    Tensor("model.layers.{}.post_attention_layernorm.weight", "layers/mlp_norm/scale", "D"),
    Tensor("model.layers.{}.mlp.gate_proj.weight", "layers/gate/kernel", "F D"),
    Tensor("model.layers.{}.mlp.up_proj.weight", "layers/up/kernel", "F D"),
    Tensor("model.layers.{}.mlp.down_proj.weight", "layers/down/kernel", "D F"),
    Tensor("model.norm.weight", "final_norm/scale", "D"),
    Tensor("lm_head.weight", "head/kernel", "V D"),
)
EMBEDDING, HEAD = TENSORS[0].name, TENSORS[-1].name

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
    """

    path: LeafPath
    layer: int | None
    shape: tuple[int, ...]
    split_shape: tuple[int, ...]
    order: tuple[int, ...]

    def from_stored(self, stored: np.ndarray) -> np.ndarray:
        """A view of the stored tensor in the layout of the leaf."""
        return stored.reshape(self.split_shape).transpose(self.order)

    def to_stored(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `from_stored`; a view if possible, so in general not contiguous."""
        return ours.transpose(np.argsort(self.order)).reshape(self.shape)


def slots(config: ModelConfig) -> dict[str, Slot]:
    """The slot of each tensor of a checkpoint, by name, in the usual order of a checkpoint."""
    result = {}
    for layer, rows in _rows_by_layer(config):
        for row in rows:
            result[row.name.format(layer)] = _slot(row, layer, config)
    return result


def _rows_by_layer(config: ModelConfig) -> list[tuple[int | None, list[Tensor]]]:
    rows = [
        row
        for row in TENSORS
        if (config.qkv_bias or not row.path.endswith("/bias"))
        and not (config.tied_embeddings and row.name == HEAD)
    ]
    layer_rows = [row for row in rows if "{}" in row.name]
    first, *last = [row for row in rows if "{}" not in row.name]
    layers = [(layer, layer_rows) for layer in range(config.num_layers)]
    return [(None, [first]), *layers, (None, last)]


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
    )


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the stored tensors of a checkpoint, in order."""
    return {name: slot.shape for name, slot in slots(config).items()}


def leaf_shapes(config: ModelConfig) -> dict[LeafPath, tuple[int, ...]]:
    """Shapes of the parameter tree's leaves, by path."""
    shapes = {}
    for slot in slots(config).values():
        stack = () if slot.layer is None else (config.num_layers,)
        shapes[slot.path] = stack + tuple(slot.split_shape[i] for i in slot.order)
    return shapes
