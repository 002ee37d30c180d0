"""The axes of every parameter, as letters, for sharding and checkpoint conversion.

L layer, V vocabulary, D width, N query heads, G kv heads, H head size, F feed-forward; a dot is an
axis without a name.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.sharding import spec

PARAMETERS = {
    "lm/embed/embedding": "V D",
    "lm/layers/attn_norm/scale": "L D",
    "lm/layers/q/kernel": "L D N H",
    "lm/layers/q/bias": "L N H",
    "lm/layers/k/kernel": "L D G H",
    "lm/layers/k/bias": "L G H",
    "lm/layers/v/kernel": "L D G H",
    "lm/layers/v/bias": "L G H",
    "lm/layers/q_head_norm/scale": "L H",
    "lm/layers/k_head_norm/scale": "L H",
    "lm/layers/q_norm/scale": "L N H",
    "lm/layers/k_norm/scale": "L G H",
    "lm/layers/o/kernel": "L N H D",
    "lm/layers/o/bias": "L D",
    "lm/layers/attn_out_norm/scale": "L D",
    "lm/layers/mlp_norm/scale": "L D",
    "lm/layers/mlp_out_norm/scale": "L D",
    "lm/layers/gate/kernel": "L D F",
    "lm/layers/up/kernel": "L D F",
    "lm/layers/down/kernel": "L F D",
    "lm/layers/q/lora_a": "L D .",
    "lm/layers/q/lora_b": "L . N H",
    "lm/layers/k/lora_a": "L D .",
    "lm/layers/k/lora_b": "L . G H",
    "lm/layers/v/lora_a": "L D .",
    "lm/layers/v/lora_b": "L . G H",
    "lm/layers/o/lora_a": "L N H .",
    "lm/layers/o/lora_b": "L . D",
    "lm/layers/gate/lora_a": "L D .",
    "lm/layers/gate/lora_b": "L . F",
    "lm/layers/up/lora_a": "L D .",
    "lm/layers/up/lora_b": "L . F",
    "lm/layers/down/lora_a": "L F .",
    "lm/layers/down/lora_b": "L . D",
    "lm/final_norm/scale": "D",
    "lm/head/kernel": "D V",
    "thought/start": "D",
    "thought/end": "D",
    "thought/pause": "D",
    "thought/talk_head/hidden_1/kernel": ". D",
    "thought/talk_head/hidden_1/bias": "D",
    "thought/talk_head/hidden_2/kernel": "D .",
    "thought/talk_head/hidden_2/bias": "D",
    "thought/talk_head/out/kernel": "D .",
}


def of_leaf(path: tuple[Any, ...]) -> tuple[str, ...] | None:
    """Axes of a leaf by its path in a tree of parameters or in an optimizer state, which holds such
    trees; None for one that is no parameter (a step count)."""
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    axes = PARAMETERS.get("/".join(map(str, names)))
    return None if axes is None else tuple(axes.split())


def parameter_specs(tree: Any, mesh: Any) -> Any:
    """The table applied to a parameter tree or an optimizer state, leaf by leaf by its path.

    Vectors (scales, biases of one axis, marks) are whole everywhere: too small to be worth gathering.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        axes = of_leaf(path)
        if axes is None or len(axes) != leaf.ndim or sum(axis != "L" for axis in axes) < 2:
            return PartitionSpec()
        return spec(axes, leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def of_parameters(tree: Any, mesh: Mesh) -> Any:
    """`parameter_specs` as shardings."""
    return jax.tree.map(
        lambda partition: NamedSharding(mesh, partition),
        parameter_specs(tree, mesh),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def placed(tree: Any, mesh: Mesh) -> Any:
    """The shapes and types of a parameter tree or optimizer state, with the sharding of each leaf."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        tree,
        of_parameters(tree, mesh),
    )


def constrain_parameters(tree: Any) -> Any:
    """`constrain` for a tree of parameters or of their gradients."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, parameter_specs(tree, mesh))


def check_model(model: ModelConfig, mesh: Mesh) -> None:
    """Refuse a mesh that does not divide the model's axes.

    Kv heads and vocabulary are whole on every device where `tensor` does not divide them.

    Raises:
      UserError: names the axis and what would divide it.
    """
    for mesh_axis, name in (
        ("fsdp", "width"),
        ("tensor", "num_heads"),
        ("tensor", "mlp_dim"),
    ):
        size, cuts = getattr(model, name), mesh.shape[mesh_axis]
        if size % cuts:
            raise UserError(
                f"mesh.{mesh_axis}={cuts} does not divide the model's {name} {size}; "
                f"{math.gcd(size, cuts)} does"
            )
