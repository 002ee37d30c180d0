"""What a traced or compiled program says about itself, without running it.

Matrix products are counted in the jaxpr, where every scan tells its length and devices do not show.
Collectives are read from the compiled program of one device, where the compiler has put them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr

_BITS = {
    "pred": 8,
    **{f"{kind}{bits}": bits for kind in "su" for bits in (2, 4, 8, 16, 32, 64)},
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "c128": 128,
    "f8e5m2": 8,
    "f8e4m3fn": 8,
}
# How much of an array crosses a device's links, by the size n of the group; rings, as in Thakur et al.,
# "Optimization of Collective Communication Operations in MPICH", 2005. Times the larger of what
# goes in and what comes out.
_TRAFFIC = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_IN_PLACE = re.compile(r"calls=%?([\w.\-]+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+(?:fn)?)?)\[([\d,]*)\]")
_KIND = re.compile(rf" ({'|'.join(_TRAFFIC)})(-start)?\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    `peak` is what the compiler says is in use at the worst moment. Temporaries are all that are ever
    allocated, not all of them at once. CPU compilers leave temporaries out of their peak: there it is
    the sum of the parts.
    """

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    code: int
    peak: int


def matmul_flops(jaxpr: Jaxpr, branches: Callable[[list[int]], float] = max) -> int:
    """FLOPs of all matrix products of a program on all devices together, a multiply-add as two.

    Kernels (Pallas) count nothing: how many of their tiles they skip is not in the program.

    Args:
      branches: what counts of the branches of a condition; the dearest, if not told otherwise.

    Raises:
      ValueError: there are products in a loop of unknown length.
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
    """The programs among an equation's parameters: bodies of loops, branches, calls."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, list | tuple):
            yield from inner_programs(value)


def memory(program: Any, platform: str) -> Memory:
    """Bytes of one device, as the compiler has laid them out."""
    stats = program.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    together = sum(parts.values()) - 2 * parts["aliased"]
    return Memory(**parts, peak=together if platform == "cpu" else stats.peak_memory_in_bytes)
