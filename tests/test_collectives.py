"""Contracts on compiled steps: what goes over the links, in which loops, and what is computed once."""

from __future__ import annotations

import collections
import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.extend.core import Jaxpr
from jax.sharding import PartitionSpec

from benchmarks import collectives
from benchmarks.collectives import CASES, MESHES, Case
from fqs_jax.model import placement
from fqs_jax.planning.collectives import Call
from fqs_jax.planning.traced import inner_programs

TABLE = json.loads(collectives.TABLE.read_text())
LAYERS = collectives.MODEL["num_layers"]
DRAWN = 2  # tokens of a thought
# Numbers that are no gradients: norms and metrics.
SCALARS = 512
# Loops that are no loops over chunks: none, over layers, and over layers for each token of a thought.
WHOLE = {(), (LAYERS,), (DRAWN, LAYERS)}
# Readings of a parameter, each of which has a gradient of its own: of the text, and of the blocks.
PASSES = {"plain": 1, "NTP": 1, "thinking": 2}
HEAD_READS = {"plain": 1, "NTP": 1, "thinking": 3}  # text, thought and talk

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def found() -> Any:
    """The collectives of a case; each is compiled once."""
    made: dict[Case, list[Call]] = {}

    def calls(case: Case) -> list[Call]:
        if case not in made:
            made[case] = collectives.calls(case)
        return made[case]

    return calls


def parameter_bytes(step: str, name: str = "fsdp 2") -> dict[str, list[tuple[int, bool]]]:
    """(bytes of a tensor device, whether fsdp cuts it) of the parameters, by the part read at once."""
    program, mesh = collectives.program(step, MESHES[name])
    parts: dict[str, list[tuple[int, bool]]] = collections.defaultdict(list)
    params = program.state.params
    specs = jax.tree.leaves(
        placement.parameter_specs(params, mesh), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    for (path, leaf), spec in zip(jax.tree_util.tree_leaves_with_path(params), specs, strict=True):
        names = [entry.key for entry in path]
        part = names[0] if names[0] == "thought" else names[1]
        whole = math.prod(leaf.shape) * 4
        share = mesh.shape["tensor"] if "tensor" in spec else 1
        parts[part].append((whole // share, "fsdp" in spec))
    return dict(parts)


def refuse(complaints: list[str]) -> None:
    """Fail with the complaints, a line each."""
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


# What goes over the links --------------------


@by_name
def test_no_program_sends_more_than_the_table_says(found: Any, case: Case) -> None:
    if TABLE["jax"] != jax.__version__:
        pytest.skip(f"the table is that of JAX {TABLE['jax']}")
    figures = {case.name: collectives.figures(found(case))}
    refuse(collectives.dearer(figures, TABLE["programs"]))


def test_the_table_has_the_programs() -> None:
    assert TABLE["programs"].keys() == {case.name for case in CASES}


def test_what_is_dearer_is_named() -> None:
    table: collectives.Table = {"plain, data 2": {"all-reduce": {"calls": 5, "bytes": 100}}}
    more = copy.deepcopy(table)
    assert collectives.dearer(more, table) == []
    more["plain, data 2"]["all-reduce"]["calls"] = 4
    assert collectives.dearer(more, table) == []
    more["plain, data 2"]["all-reduce"]["bytes"] = 101
    more["plain, data 2"]["all-gather"] = {"calls": 1, "bytes": 8}
    more["NTP, data 2"] = {}
    assert collectives.dearer(more, table) == [
        "plain, data 2: all-reduce: 101 bytes, allowed 100",
        "plain, data 2: all-gather: 1 calls, allowed 0",
        "plain, data 2: all-gather: 8 bytes, allowed 0",
        "NTP, data 2: the table has no such program; see --update",
    ]


@pytest.mark.parametrize(
    ("step", "mesh"),
    [("plain", "data 2"), ("plain", "fsdp 2"), ("NTP", "fsdp 2")]
    + [("thinking", "data 2"), ("thinking", "fsdp 2")],
)
def test_gradients_are_added_once_for_each_reading(found: Any, step: str, mesh: str) -> None:
    """2 (n - 1) / n = 1 times the bytes of the gradients, on two devices, and a few numbers."""
    passes = {"thought": 1, "head": HEAD_READS[step]}
    expected = sum(
        size * passes.get(part, PASSES[step])
        for part, leaves in parameter_bytes(step).items()
        for size, _ in leaves
    )
    kinds = collectives.figures(found(Case(step, mesh)))
    assert expected <= kinds["all-reduce"]["bytes"] <= expected + SCALARS


@pytest.mark.parametrize(
    ("step", "mesh"),
    [("plain", "fsdp 2"), ("NTP", "fsdp 2"), ("thinking", "fsdp 2")]
    + [("plain", "fsdp 2 x tensor 2"), ("thinking", "fsdp 2 x tensor 2")],
)
def test_parameters_are_gathered_once_for_each_pass(found: Any, step: str, mesh: str) -> None:
    """(n - 1) / n = 1/2 of the bytes: layers forward and backward, and for each token of a thought.

    A device of `tensor` gathers its own part only.
    """
    layers = 2 * PASSES[step] + (DRAWN if step == "thinking" else 0)
    expected = sum(
        size * (layers if part == "layers" else 1) / 2
        for part, leaves in parameter_bytes(step, mesh).items()
        for size, is_cut in leaves
        if is_cut
    )
    kinds = collectives.figures(found(Case(step, mesh)))
    assert kinds["all-gather"]["bytes"] == expected


def test_tensor_devices_add_activations(found: Any) -> None:
    """Arrays as large as the hidden states: 2 of a layer forward, 1 again and 5 backward; embeddings; logits.

    The backward pass adds the parts of q, k and v, and those of gate and up, each by itself.
    """
    tokens, width = collectives.ROWS * collectives.TOKENS, collectives.MODEL["width"]
    read = tokens - collectives.ROWS  # no prediction at a row's last token
    numbers = 3 + 2  # of each prediction: maximum, sum and label; maximum and sum again
    expected = 4 * (LAYERS * 8 * tokens * width + tokens * width + read * width + read * numbers)
    kinds = collectives.figures(found(Case("plain", "tensor 2")))
    assert set(kinds) == {"all-reduce"}
    assert expected <= kinds["all-reduce"]["bytes"] <= expected + SCALARS


# Where it is --------------------


@by_name
def test_loops_over_chunks_send_nothing_of_a_parameters_size(found: Any, case: Case) -> None:
    """The head is gathered once, and its gradients are added once, whatever vocab_chunk is."""
    too_large = [
        f"{case.name}: {call.kind} of {max(call.arrays):,.0f} bytes in loops {call.loops}: {call.place}"
        for call in found(case)
        if not is_allowed(call, case)
    ]
    refuse(too_large)


def is_allowed(call: Call, case: Case) -> bool:
    """True outside loops over chunks. Microbatches are a loop around everything.

    Devices of `tensor` also add small arrays of each chunk, and the embeddings of drawn tokens.
    """
    around = (case.microbatches,) * (case.microbatches > 1)
    if call.loops in WHOLE | {(*around, *loops) for loops in WHOLE}:
        return True
    if call.kind != "all-reduce" or MESHES[case.mesh][2] == 1:
        return False
    c = collectives.MODEL
    smallest = 4 * c["width"] * c["num_kv_heads"] * c["head_dim"]
    return call.loops == (DRAWN,) or max(call.arrays) < smallest


def test_each_microbatch_gathers_and_adds_again(found: Any) -> None:
    """Documented in docs/scale.md: a microbatch is a loop around the whole step."""
    whole = collectives.figures(found(Case("plain", "fsdp 2")))
    parts = collectives.figures(found(Case("plain", "fsdp 2", microbatches=2)))
    assert parts["all-gather"]["bytes"] == 2 * whole["all-gather"]["bytes"]
    assert parts["all-reduce"]["bytes"] == pytest.approx(2 * whole["all-reduce"]["bytes"], rel=0.01)


def test_ntp_sends_the_parameters_that_a_plain_step_sends(found: Any) -> None:
    def parameters(step: str) -> collections.Counter[Any]:
        return collections.Counter(
            (call.kind, call.loops, size)
            for call in found(Case(step, "fsdp 2"))
            for size in call.arrays
            if size > SCALARS
        )

    assert parameters("NTP") == parameters("plain")


# What is computed --------------------


def equations(jaxpr: Jaxpr, times: int = 1) -> Iterator[tuple[Any, int]]:
    """All equations of a program, with the number of times that they run."""
    for equation in jaxpr.eqns:
        yield equation, times
        inner = times * equation.params.get("length", 1)
        for each in inner_programs(equation.params.values()):
            yield from equations(each, inner)


def products_and_layers(step: str) -> tuple[collections.Counter[Any], collections.Counter[str]]:
    """The matrix products of a step by their shapes, and its loops over layers, as text."""
    program, mesh = collectives.program(step, (1, 1, 1))
    with jax.set_mesh(mesh):
        traced = program.step.trace(program.state, program.batch, np.int32(0))
    products: collections.Counter[Any] = collections.Counter()
    loops: collections.Counter[str] = collections.Counter()
    for equation, times in equations(traced.jaxpr.jaxpr):
        if equation.primitive.name == "dot_general":
            shapes = tuple(x.aval.str_short() for x in (*equation.invars, *equation.outvars))
            products[shapes, str(equation.params["dimension_numbers"])] += times
        if equation.primitive.name == "scan" and equation.params["length"] == LAYERS:
            loops[str(equation.params["jaxpr"])] += times
    return products, loops


def test_ntp_computes_the_products_of_a_plain_step() -> None:
    """No second forward pass: actions are drawn from the logits that the loss reads."""
    products, loops = products_and_layers("plain")
    of_ntp, ntp_loops = products_and_layers("NTP")
    refuse([f"NTP: {times} more of {product}" for product, times in (of_ntp - products).items()])
    refuse([f"NTP: {times} fewer of {product}" for product, times in (products - of_ntp).items()])
    assert ntp_loops == loops
    assert loops.total() == 2  # forward and backward
    # q, k, v, o, gate, up and down: forward, backward twice, and again but for the last.
    assert products.total() > LAYERS * (4 * 7 - 1)
