"""Low-rank adapters (LoRA, arXiv 2106.09685, section 4.1): beside a frozen kernel W, a trained product A B.

A layer computes x W + (alpha / rank) (x A) B. In a tree of parameters, the adapter of `layers/q/kernel`
is `layers/q/lora_a` and `layers/q/lora_b`. A tree with adapters trains these and what is not of the
decoder (the thoughts); a tree without adapters trains everything.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from fqs_jax.runtime.errors import UserError

Params = dict[str, Any]

A, B = "lora_a", "lora_b"
# The kernels that an adapter can stand beside, and how many of their axes are inputs.
TARGETS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters of a stage.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the adapter's product is multiplied by alpha / rank.
      targets: names of TARGETS, in its order.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            shown = ",".join(unknown)
            raise UserError(f"lora.targets names {shown!r}; choose from {','.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """The factor alpha / rank of the adapter's product."""
        return self.alpha / self.rank

    def check_rank(self, layers: Params) -> None:
        """Refuse a rank that is larger than the smaller side of an adapted kernel.

        Args:
          layers: the stacked layers of an `lm` tree, arrays or shapes.

        Raises:
          UserError: names the kernel and the largest rank.
        """
        smallest = {name: min(_sides(layers, name)) for name in self.targets}
        name = min(smallest, key=smallest.__getitem__)
        if self.rank > smallest[name]:
            raise UserError(
                f"lora.rank is {self.rank}, more than the smaller side of the kernel {name!r}; set at "
                f"most {smallest[name]}, or leave {name!r} out of lora.targets"
            )


def fresh(lora: Lora, layers: Params, key: jax.Array) -> Params:
    """New adapters {"layers": {target: {lora_a, lora_b}}}, float32 whatever the kernels are.

    A is uniform within 1 / sqrt(inputs) (kaiming uniform as in PEFT) and B zero, so the model is still
    the base. As in PEFT, adapters of a bfloat16 model are float32: small steps would be lost.

    Args:
      layers: the stacked layers of an `lm` tree, arrays or shapes.
    """
    made = {}
    for name in lora.targets:
        L, *axes = layers[name]["kernel"].shape
        inputs, outputs = axes[: TARGETS[name]], axes[TARGETS[name] :]
        bound = 1 / math.sqrt(math.prod(inputs))
        own = jax.random.fold_in(key, list(TARGETS).index(name))
        shape = (L, *inputs, lora.rank)
        made[name] = {
            A: jax.random.uniform(own, shape, jnp.float32, -bound, bound),
            B: jnp.zeros((L, lora.rank, *outputs)),
        }
    return {"layers": made}


def split(params: Params) -> tuple[Params, Params]:
    """The trained and the frozen part of a tree {lm[, thought]}; nothing is frozen without adapters."""
    leaves = traverse_util.flatten_dict(params)
    if not any(path[-1] == A for path in leaves):
        return params, {}
    trained = {path: leaf for path, leaf in leaves.items() if path[0] != "lm" or path[-1] in (A, B)}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(frozen)


def joined(trained: Params, frozen: Params, scale: float = 1.0) -> Params:
    """The tree that `split` divided, with lora_b multiplied by `scale`, as `dense.Dense` needs it."""
    if not frozen:
        return trained
    leaves = traverse_util.flatten_dict(trained)
    if scale != 1.0:
        leaves |= {path: leaf * scale for path, leaf in leaves.items() if path[-1] == B}
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(frozen) | leaves)


def merged(lm: Params, adapters: Params, scale: float) -> Params:
    """The `lm` tree without adapters that computes the same: W + scale A B, added in float32.

    Args:
      lm: the base; the memory of its adapted kernels is used for the results.
      adapters: the `lm` part of a trained tree.
    """
    kernels = {name: lm["layers"][name]["kernel"] for name in adapters["layers"]}
    places = {name: kernel.sharding for name, kernel in kernels.items()}
    merge = jax.jit(functools.partial(_merge, scale=scale), donate_argnums=0, out_shardings=places)
    new = merge(kernels, adapters["layers"])
    changed = {name: {**lm["layers"][name], "kernel": kernel} for name, kernel in new.items()}
    return {**lm, "layers": {**lm["layers"], **changed}}


def _merge(kernels: Params, adapters: Params, scale: float) -> Params:
    def add(kernel: jax.Array, adapter: Params) -> jax.Array:
        down, up = adapter[A], adapter[B]
        L, rank = up.shape[:2]
        product = jnp.matmul(
            down.reshape(L, -1, rank), up.reshape(L, rank, -1), precision="highest"
        )
        return (kernel + scale * product.reshape(kernel.shape)).astype(kernel.dtype)

    return {name: add(kernel, adapters[name]) for name, kernel in kernels.items()}


def _sides(layers: Params, name: str) -> tuple[int, int]:
    """Inputs and outputs of a kernel."""
    axes = layers[name]["kernel"].shape[1:]
    return math.prod(axes[: TARGETS[name]]), math.prod(axes[TARGETS[name] :])
