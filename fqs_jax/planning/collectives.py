"""Collectives of a compiled program and the bytes they move, read from its HLO text."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

from fqs_jax.planning.traced import (
    _ARRAY,
    _BITS,
    _BRANCHES,
    _COMPUTATION,
    _CONSTANT,
    _IN_PLACE,
    _INSTRUCTION,
    _KIND,
    _TRAFFIC,
    _TRIPS,
    _WHILE,
)


@dataclasses.dataclass
class Collective:
    """One kind of collective in a step of one device.

    Attributes:
      calls: how often it runs. bytes: what crosses the device's links in one direction.
    """

    calls: int = 0
    bytes: float = 0.0


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
