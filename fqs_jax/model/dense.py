"""The dense layer of decoder blocks, in the forms that its parameters ask for.

They are those of flax's DenseGeneral, and may have an adapter beside the kernel (model/lora.py). For few
rows on a CPU, the kernel may lie with its outputs first.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fqs_jax.model.lora import TARGETS, A, B, Params

OUTPUTS_FIRST = "kernel_OxI"  # name of a kernel [outputs, inputs] in the place of `kernel`
_FEW = 64  # rows


class Dense(nn.DenseGeneral):
    """A dense layer of inputs [R, ...], and its adapter if its parameters have one.

    The factor alpha / rank is in lora_b.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        if self.has_variable("params", OUTPUTS_FIRST):
            return self._outputs_first(inputs)
        output = super().__call__(inputs)
        if not self.has_variable("params", A):
            return output
        adapter: list[jax.Array] = [self.get_variable("params", name) for name in (A, B)]
        down, up = (part.astype(output.dtype) for part in adapter)
        # (x A) B, never A B: neither the product nor its gradient exists in the size of the kernel.
        small = jnp.tensordot(inputs.astype(output.dtype), down, axes=down.ndim - 1)
        return output + jnp.tensordot(small, up, axes=1)

    def _outputs_first(self, inputs: jax.Array) -> jax.Array:
        kernel_OxI: jax.Array = self.get_variable("params", OUTPUTS_FIRST).astype(self.dtype)
        rows_RxI = inputs.reshape(len(inputs), -1).astype(self.dtype)
        features = (self.features,) if isinstance(self.features, int) else self.features
        output = product(rows_RxI, kernel_OxI).reshape(-1, *features)
        if self.use_bias:
            output += self.get_variable("params", "bias").astype(self.dtype)
        return output


def product(rows_RxI: jax.Array, kernel_OxI: jax.Array, dtype: Any = None) -> jax.Array:
    """rows @ kernel^T, [R, O], in `dtype`; None = that of the factors.

    XLA multiplies few rows on a CPU up to twice as fast if the kernel is the left factor and lies as it
    is read. Barriers keep XLA from turning the product round.
    """
    matmul = functools.partial(jnp.matmul, preferred_element_type=dtype)
    if len(rows_RxI) > _FEW:
        return matmul(rows_RxI, kernel_OxI.T)
    columns_IxR = jax.lax.optimization_barrier(rows_RxI.T)
    return jax.lax.optimization_barrier(matmul(kernel_OxI, columns_IxR)).T


def outputs_first(layer: Params) -> Params:
    """The parameters of one decoder block with every kernel in the form OUTPUTS_FIRST.

    Args:
      layer: of one block, without adapters; leaves have no axis of layers.
    """

    def converted(name: str, part: Params) -> Params:
        assert A not in part
        if "kernel" not in part:
            return part
        kernel, others = part["kernel"], {k: x for k, x in part.items() if k != "kernel"}
        inputs = math.prod(kernel.shape[: TARGETS[name]])
        return others | {OUTPUTS_FIRST: kernel.reshape(inputs, -1).T}

    return {name: converted(name, part) for name, part in layer.items()}
