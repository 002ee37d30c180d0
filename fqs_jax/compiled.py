"""What a traced or compiled program says about itself, without running it.

Matrix products are counted in the jaxpr, where every scan tells its length and devices do not show.
Collectives are read from the compiled program of one device, where the compiler has put them.
"""

from __future__ import annotations

import collections
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


@dataclasses.dataclass
class Collective:
    """One kind of collective in a step of one device.

    Attributes:
      calls: how often it runs. bytes: what crosses the device's links in one direction.
    """

    calls: int = 0
    bytes: float = 0.0


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


def collectives(text: str) -> dict[str, Collective]:
    """Collectives of a compiled program by kind, those in loops as often as the loop turns.

    Approximations: traffic is that of a ring; loops count up from 0 by a constant, others count as one
    turn; all branches of a condition count; a reduce-scatter that a TPU compiles into an
    all-reduce and a slice, or into permutes around a ring, shows as those.
    """
    program = _Program(text)
    found: dict[str, Collective] = {}
    for name, times in program.times().items():
        # A TPU runs one collective in pieces, beside several fusions, each of which shows it whole.
        seen = set()
        for line in program.flat(name):
            if not (kind := _KIND.search(line)):
                continue
            channel = re.search(r"channel_id=\d+", line)
            if channel and channel[0] in seen:
                continue
            seen.add(channel[0] if channel else line)
            total = found.setdefault(kind[1], Collective())
            total.calls += times
            total.bytes += times * _traffic(line, kind)
    return dict(sorted(found.items()))


class _Program:
    """The computations of a compiled program: loops, conditions and, flattened into them, fusions."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, list[str]] = {}
        self.entry = name = ""
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                name = start[1]
                self.lines[name] = []
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif _INSTRUCTION.match(line):
                self.lines[name].append(line)

    def flat(self, name: str) -> list[str]:
        """The instructions of a computation and of what it calls in place (fusions, async)."""
        lines = []
        for line in self.lines[name]:
            lines.append(line)
            for called in _IN_PLACE.findall(line):
                lines.extend(self.flat(called))
        return lines

    def times(self) -> dict[str, int]:
        """How often the entry and each body of a loop or branch of a condition runs."""
        times: collections.Counter[str] = collections.Counter()
        stack = [(self.entry, 1)]
        while stack:
            name, turns = stack.pop()
            times[name] += turns
            for line in self.flat(name):
                if loop := _WHILE.search(line):
                    stack.append((loop[2], turns * self._trips(line, loop[1], loop[2])))
                for names in _BRANCHES.findall(line):
                    stack.extend((n.strip().lstrip("%"), turns) for n in names.split(","))
        return dict(times)

    def _trips(self, line: str, condition: str, body: str) -> int:
        """Turns of a loop: the compiler's word, or bound / step of `for i in range(0, bound, step)`."""
        if known := _TRIPS.search(line):
            return int(known[1])
        values = {**self._values(condition), **self._values(body)}
        test = re.search(
            r"compare\(%?([\w.\-]+), %?([\w.\-]+)\).*direction=LT", self._root(condition)
        )
        index = test and re.search(r"index=(\d+)", values.get(test[1], ""))
        bound = test and _CONSTANT.search(values.get(test[2], ""))
        if not index or not bound:
            return 1
        returned = re.search(r" tuple\((.*?)\)(, |$)", self._root(body))
        names = re.findall(r"%([\w.\-]+)", returned[1]) if returned else []
        counter = int(index[1])
        step = 1
        if counter < len(names):
            added = re.search(r" add\(%?([\w.\-]+), %?([\w.\-]+)\)", values.get(names[counter], ""))
            constant = added and _CONSTANT.search(values.get(added[2], ""))
            step = int(constant[1]) if constant else 1
        return -(-int(bound[1]) // step)

    def _values(self, name: str) -> dict[str, str]:
        found = (_INSTRUCTION.match(line) for line in self.lines[name])
        return {match[1]: match[2] for match in found if match}

    def _root(self, name: str) -> str:
        return next((line for line in self.lines[name] if line.lstrip().startswith("ROOT")), "")


def _traffic(line: str, kind: re.Match[str]) -> float:
    """Bytes that cross one device's links in one run of a collective."""
    n = _group_size(line)
    size = _bytes(line[: kind.start()].split(" = ", 1)[1])
    if kind[2] and kind[1] == "all-gather":  # the result holds the operand too, an nth of it
        size *= n / (n + 1)
    elif kind[2] and kind[1] == "collective-permute":  # operand, result and two counters
        size /= 2
    elif kind[1] == "reduce-scatter":
        size *= n
    return size * _TRAFFIC[kind[1]](n)


def _bytes(shapes: str) -> float:
    """Bytes of all arrays in the text of a type."""
    total = 0.0
    for dtype, sizes in _ARRAY.findall(shapes):
        if dtype in _BITS:
            total += math.prod(int(s) for s in sizes.split(",") if s) * _BITS[dtype] / 8
    return total


def _group_size(line: str) -> int:
    """How many devices take part in each group of a collective; permutes have none."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return found[1].count(",") + 1
    return 1
