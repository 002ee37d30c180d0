"""Collectives of a compiled program and the bytes they move, read from its HLO text.

JAX has no interface that lists the collectives which the partitioner inserts: `cost_analysis` does
not show them. The text is that of XLA's printer, so a new JAX may need new patterns here; the tests read
a program that the installed one has compiled.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

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
# Share of an array that crosses a device's links in a group of n devices, for ring algorithms: Thakur et al.,
# "Optimization of Collective Communication Operations in MPICH", 2005. The array is the operand or
# the result, whichever is larger.
_TRAFFIC = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# The second kind runs beside the others, on a SparseCore.
_IN_PLACE = re.compile(r"(?:calls| call-start\(.*to_apply)=%?([\w.\-]+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+(?:fn)?)?)\[([\d,]*)\]")
_KIND = re.compile(rf" ({'|'.join(_TRAFFIC)})(-start)?\(")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Call:
    """One collective of a compiled program.

    Attributes:
      kind: as in HLO, such as `all-gather`.
      loops: turns of the loops around it, outermost first.
      arrays: bytes of each array of its result on one device.
      bytes: bytes that cross the device's links in one direction in one run.
      place: the operation of the traced program that it belongs to, as far as the compiler tells.
    """

    kind: str
    loops: tuple[int, ...]
    arrays: tuple[float, ...]
    bytes: float
    place: str

    @property
    def runs(self) -> int:
        """Number of times that it runs in one step."""
        return math.prod(self.loops)


@dataclasses.dataclass
class Collective:
    """All collectives of one kind in one step on one device.

    Attributes:
      calls: number of times that they run.
      bytes: bytes that cross the device's links in one direction.
    """

    calls: int = 0
    bytes: float = 0.0


class _Program:
    """The computations of a compiled program, each a list of its instructions.

    Attributes:
      lines: instructions as text, by the name of their computation.
      entry: name of the computation that the program starts with.
    """

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
        """The instructions of a computation and of the fusions and async calls in it."""
        lines = []
        for line in self.lines[name]:
            lines.append(line)
            for called in _IN_PLACE.findall(line):
                lines.extend(self.flat(called))
        return lines

    def nested(self) -> list[tuple[str, tuple[int, ...]]]:
        """The entry, each loop body and each branch of a condition, with the turns of the loops around."""
        found = []
        stack: list[tuple[str, tuple[int, ...]]] = [(self.entry, ())]
        while stack:
            name, loops = stack.pop()
            found.append((name, loops))
            for line in self.flat(name):
                if loop := _WHILE.search(line):
                    turns = self._count_iterations(line, loop[1], loop[2])
                    stack.append((loop[2], (*loops, turns)))
                for names in _BRANCHES.findall(line):
                    stack.extend((n.strip().lstrip("%"), loops) for n in names.split(","))
        return found

    def _count_iterations(self, line: str, condition: str, body: str) -> int:
        """Iterations of a loop: what the compiler notes, or those of `range(0, bound, step)`."""
        if known := _TRIP_COUNT.search(line):
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


def collectives(text: str) -> dict[str, Collective]:
    """Count the collectives of a compiled program by kind, with one call for each loop iteration.

    Approximations: traffic is that of ring algorithms. A loop that does not count up from 0 by a constant
    counts as one iteration. All branches of a condition count. A reduce-scatter that a TPU compiles into
    an all-reduce and a slice, or into permutes around a ring, counts as those.

    Args:
      text: HLO of one device after partitioning, `compiled.as_text()`.
    """
    return by_kind(calls(text))


def by_kind(found: Iterable[Call]) -> dict[str, Collective]:
    """Sums over the runs of collectives in one step, by kind."""
    totals: dict[str, Collective] = {}
    for call in found:
        total = totals.setdefault(call.kind, Collective())
        total.calls += call.runs
        total.bytes += call.runs * call.bytes
    return dict(sorted(totals.items()))


def calls(text: str) -> list[Call]:
    """Every collective of a compiled program, each once, however often it runs; see `collectives`."""
    program = _Program(text)
    found = []
    for name, loops in program.nested():
        # A TPU may run one collective in pieces beside several fusions, and each fusion lists all of it.
        seen = set()
        for line in program.flat(name):
            if not (kind := _KIND.search(line)):
                continue
            channel = re.search(r"channel_id=\d+", line)
            if channel and channel[0] in seen:
                continue
            seen.add(channel[0] if channel else line)
            arrays = _arrays(line[: kind.start()].split(" = ", 1)[1])
            place = re.search(r'op_name="([^"]*)"', line)
            traffic = _traffic(line, kind, sum(arrays))
            found.append(Call(kind[1], loops, arrays, traffic, place[1] if place else ""))
    return found


def _traffic(line: str, kind: re.Match[str], size: float) -> float:
    """Bytes that cross one device's links in one run of a collective, whose result has `size` bytes."""
    n = _group_size(line)
    if kind[2] and kind[1] in ("all-gather", "reduce-scatter"):  # whole array and the device's 1/n
        size *= n / (n + 1)
    elif kind[2] and kind[1] == "collective-permute":  # operand, result and two counters
        size /= 2
    elif kind[1] == "reduce-scatter":
        size *= n
    return size * _TRAFFIC[kind[1]](n)


def _arrays(shapes: str) -> tuple[float, ...]:
    """Bytes of each array that the text of a type lists."""
    return tuple(
        math.prod(int(s) for s in sizes.split(",") if s) * _BITS[dtype] / 8
        for dtype, sizes in _ARRAY.findall(shapes)
        if dtype in _BITS
    )


def _group_size(line: str) -> int:
    """Number of devices in each group of a collective; 1 for permutes, which have no groups."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return found[1].count(",") + 1
    return 1
