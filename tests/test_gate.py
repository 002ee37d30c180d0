"""The regression gate: figures of today's steps do not exceed those of its table."""

from __future__ import annotations

import copy
import json

import jax
import pytest

from benchmarks import gate, phases, shapes
from benchmarks.long_run import Moment, problems, windows

TABLE = json.loads(gate.TABLE.read_text())


@pytest.mark.slow
def test_no_step_is_dearer_than_the_table_says() -> None:
    found = gate.counted()
    assert found.keys() == set(shapes.NAMES.values())
    assert gate.dearer(found, TABLE["steps"], TABLE["jax"] == jax.__version__) == []


def test_the_table_has_every_figure() -> None:
    for name in shapes.NAMES.values():
        assert gate.COUNTED <= TABLE["steps"][name].keys() <= gate.MARGINS.keys()


@pytest.mark.parametrize("figure", sorted(gate.MARGINS))
def test_a_dearer_step_is_named(figure: str) -> None:
    table = {name: dict.fromkeys(gate.MARGINS, 2.0) for name in shapes.NAMES.values()}
    found = copy.deepcopy(table)
    found["8/4"][figure] = 2.0 * (1 + gate.MARGINS[figure]) - 0.001
    assert gate.dearer(found, table) == []
    found["8/4"][figure] += 0.002
    assert [line.split()[:2] for line in gate.dearer(found, table)] == [["8/4:", figure]]
    other = gate.dearer(found, table, same_compiler=False)
    assert bool(other) == (figure not in gate.OF_COMPILER)


def test_text_read_twice_is_noticed() -> None:
    """One more text pass is a small part of a thinking step, and still above the margin."""
    from fqs_jax.thinking import flops

    kind = gate.step_kind("1")
    again = kind.rows * flops.text_forward(kind.model, kind.length)
    assert again / kind.flops > 2 * gate.MARGINS["flops_over_minimal"]


# Long runs --------------------


def run(
    slower: float = 0.0, leak: float = 0.0, arrays: float = 0.0, busy: bool = True
) -> list[str]:
    """Complaints about 1000 invented steps that change linearly by the given amounts."""
    moments, wall, cpu = [], 0.0, 0.0
    for i in range(1000):
        wall += 0.1 * (1 + slower * i / 1000)
        cpu += 0.1 * (1 + busy * slower * i / 1000)
        moments.append(Moment(wall, cpu, 500 + leak * i / 1000, round(100 + arrays * i / 1000)))
    return problems(windows(moments, 5), own_clock=True)


def test_a_run_that_is_not_flat_is_named() -> None:
    assert run() == run(slower=0.05, leak=20) == []
    assert run(slower=0.5, busy=False) == []  # other programs used the CPU
    assert run(slower=0.5) == ["a step takes 1.38 times as long"]
    assert run(leak=100) == ["60 MiB more"]
    assert run(arrays=10) == ["8 arrays more"]


def test_phases_are_the_whole_step() -> None:
    counts = phases.phase_flops(gate.step_kind("1"))
    whole, head = counts.pop("step"), counts.pop("of it, head")
    assert sum(counts.values()) == whole > head > 0
