"""Equations of traced programs, with their number of runs, without running them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from fqs_jax.planning.traced import inner_programs


def equations(function: Any, *args: Any) -> Iterator[tuple[Any, int]]:
    """All equations of a function's program with their numbers of runs; scan bodies run per element."""
    return _equations(jax.make_jaxpr(function)(*args).jaxpr, 1)


def _equations(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    for equation in jaxpr.eqns:
        yield equation, times
        if equation.primitive.name in ("while", "cond"):
            raise NotImplementedError(
                f"{equation.primitive.name} runs its body an unknown number of times"
            )
        inner_times = times * equation.params.get("length", 1)
        for inner in inner_programs(equation.params.values()):
            yield from _equations(inner, inner_times)


def matmul_flops(function: Any, *args: Any) -> int:
    """FLOPs of all matrix products; a multiply-add is two."""
    total = 0
    for equation, times in equations(function, *args):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval
            per_output = 2
            for axis in contracted:
                per_output *= left[axis]
            total += times * per_output * out.size
    return total
