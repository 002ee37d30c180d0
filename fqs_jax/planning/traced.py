"""FLOPs of a traced program, without running it.

Matrix products are counted in the jaxpr, which has the length of every scan and is not yet split over
devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(jaxpr: Jaxpr, branches: Callable[[list[int]], float] = max) -> int:
    """FLOPs of all matrix products of a program, on all devices together; a multiply-add is two.

    Pallas kernels count as 0, because the program does not show how many of their tiles they skip.

    Args:
      branches: FLOPs of a condition as a function of the FLOPs of its branches; the largest by default.

    Raises:
      ValueError: a loop of unknown length has matrix products.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(inner_programs(equation.params.values()))
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = (
                cast(ShapedArray, x.aval) for x in (equation.invars[0], equation.outvars[0])
            )
            total += 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
        elif name == "pallas_call":
            continue
        elif name == "cond":
            total += round(branches([matmul_flops(each, branches) for each in inner]))
        else:
            inside = sum(matmul_flops(each, branches) for each in inner)
            if name == "while" and inside:
                raise ValueError(
                    "matrix products in a while loop, which runs an unknown number of times"
                )
            total += equation.params.get("length", 1) * inside if name == "scan" else inside
    return total


def inner_programs(values: Any) -> Iterator[Jaxpr]:
    """The programs among the parameters of an equation: loop bodies, branches, calls."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, list | tuple):
            yield from inner_programs(value)
