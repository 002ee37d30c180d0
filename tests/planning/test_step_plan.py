"""Plans: what is counted in a traced program, what is read from a compiled one, and the command."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from configs import qwen2_5_0_5b, tiny
from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.model import decoder
from fqs_jax.planning import chips, collectives, printed, step_plan, topologies, traced
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import flops
from fqs_jax.training import step as step_lib
from tests.tiny_runs import refusal, run, run_alone

SMALL = {
    "vocab_size": 64,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 48,
}
OVERRIDES = [f"--config.model.{name}={value}" for name, value in SMALL.items()]
COMMAND = ("--config=configs/qwen2_5_0_5b.py", *OVERRIDES, "--config.data.seq_len=16")


# FLOPs of a traced program --------------------


def layers(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Five layers under rematerialisation; the products are 2 B D D each."""

    @jax.checkpoint
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ w), None

    return jnp.sum(jax.lax.scan(layer, x, weights)[0])


def jaxpr_of(function: Any, *shapes: tuple[int, ...]) -> Any:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).trace(*arguments).jaxpr.jaxpr


def test_products_are_counted_as_often_as_a_scan_runs() -> None:
    forward = 5 * 2 * 3 * 7 * 7
    assert traced.matmul_flops(jaxpr_of(layers, (3, 7), (5, 7, 7))) == forward
    # Backward: two products for one, and the forward one again.
    gradient = jax.value_and_grad(layers, argnums=(0, 1))
    assert traced.matmul_flops(jaxpr_of(gradient, (3, 7), (5, 7, 7))) == 4 * forward


def test_the_dearest_branch_counts() -> None:
    def choose(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert traced.matmul_flops(jaxpr_of(choose, (4, 4))) == 2 * 2 * 4**3


def test_loops_of_unknown_length_are_refused_if_they_multiply() -> None:
    def loop(body: Any) -> Any:
        return lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, body, x)

    assert traced.matmul_flops(jaxpr_of(loop(lambda x: x + 1), (4, 4))) == 0
    with pytest.raises(ValueError, match="unknown number of times"):
        traced.matmul_flops(jaxpr_of(loop(lambda x: x @ x), (4, 4)))


# Collectives of a compiled program --------------------

# A loop whose length the compiler tells, with a loop of 8 / 2 turns inside it, and one collective in
# two pieces beside two fusions, as a TPU runs it.
PROGRAM = """
HloModule step, is_scheduled=true

%piece.1 (p: bf16[1,8]) -> bf16[4,8] {
  %p = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%piece.2 (p.1: bf16[1,8]) -> bf16[4,8] {
  %p.1 = bf16[1,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[4,8]{1,0} all-gather(%p.1), channel_id=5, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%inner_condition (c: (u32[], f32[16])) -> pred[] {
  %c = (u32[], f32[16]{0}) parameter(0)
  %bound = u32[] constant(8)
  %counter = u32[] get-tuple-element(%c), index=0
  ROOT %test = pred[] compare(%counter, %bound), direction=LT
}

%inner (i: (u32[], f32[16])) -> (u32[], f32[16]) {
  %i = (u32[], f32[16]{0}) parameter(0)
  %two = u32[] constant(2)
  %at = u32[] get-tuple-element(%i), index=0
  %x = f32[16]{0} get-tuple-element(%i), index=1
  %start = (f32[16]{0}, f32[16]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), \
channel_id=6, source_target_pairs={{0,1},{1,0}}
  %moved = f32[16]{0} collective-permute-done(%start)
  %next = u32[] add(%at, %two)
  ROOT %both = (u32[], f32[16]{0}) tuple(%next, %moved)
}

%outer_condition (d: (s32[], f32[16])) -> pred[] {
  %d = (s32[], f32[16]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

%outer (o: (s32[], f32[16])) -> (s32[], f32[16]) {
  %o = (s32[], f32[16]{0}) parameter(0)
  %first = bf16[4,8]{1,0} fusion(%o), kind=kOutput, calls=%piece.1
  %second = bf16[4,8]{1,0} fusion(%o), kind=kOutput, calls=%piece.2
  %inside = (u32[], f32[16]{0}) while(%o), condition=%inner_condition, body=%inner
  ROOT %t = (s32[], f32[16]{0}) tuple(%o, %inside)
}

%offloaded (p: f32[16]) -> f32[2,2] {
  %p = f32[16]{0} parameter(0)
  ROOT %scatter = f32[2,2]{1,0} reduce-scatter(%p), channel_id=7, replica_groups=[2,4]<=[8], to_apply=%add
}

ENTRY %main (a: f32[16]) -> f32[16] {
  %a = f32[16]{0} parameter(0)
  %w = (s32[], f32[16]{0}) while(%a), condition=%outer_condition, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  %scattered = ((f32[16]{0}), f32[2,2]{1,0}) call-start(%a), async_execution_thread="sparsecore", \
to_apply=%offloaded
  %starts = (f32[4]{0}, f32[16]{0}) all-gather-start(%a), channel_id=8, replica_groups={{0,1,2,3}}
  %begins = ((f32[16]{0}), f32[4]{0}) reduce-scatter-start(%a), channel_id=10, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %sum = (f32[16]{0}, f32[4]{0}) all-reduce(%a, %a), channel_id=9, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
"""


def test_collectives_count_as_often_as_their_loops_turn() -> None:
    found = collectives.collectives(PROGRAM)
    calls = {kind: collective.calls for kind, collective in found.items()}
    assert calls == {
        "all-gather": 3 + 1,
        "all-reduce": 1,
        "collective-permute": 3 * 4,
        "reduce-scatter": 2,
    }
    moved = {kind: collective.bytes for kind, collective in found.items()}
    assert moved == {
        "all-gather": 3 * (4 * 8 * 2) * 3 / 4 + 64 * 3 / 4,
        "all-reduce": 2 * (64 + 16) * 3 / 4,
        "collective-permute": 12 * 64 + 12 * 4,  # the counters are moved too
        "reduce-scatter": 4 * 16 * 3 / 4 + 64 * 3 / 4,
    }


def test_collectives_of_a_program_that_was_compiled() -> None:
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2}, jax.devices()[:8])

    def sums(x: jax.Array) -> jax.Array:
        def add(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.tanh(jax.lax.psum(x, "fsdp")), None

        return jax.lax.scan(add, x, None, 7)[0]

    split = jax.shard_map(
        sums, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
    )
    text = jax.jit(split).lower(jnp.zeros(16)).compile().as_text() or ""
    assert collectives.collectives(text) == {
        "all-reduce": collectives.Collective(7, 7 * 64 * 2 * 3 / 4)
    }


# Plans --------------------


def small_config(changes: dict[str, Any]) -> ml_collections.ConfigDict:
    c = qwen2_5_0_5b.get_config()
    c.model.update(SMALL)
    c.data.seq_len = 16
    c.update_from_flattened_dict(changes)
    return c


Case = tuple[Recipe, Mesh]


def small_case(number: str, changes: dict[str, Any] | None = None, devices: int = 8) -> Case:
    """The recipe of a small model's stage, and a mesh of virtual devices."""
    config = small_config(changes or {})
    recipes = resolve.recipes(config, step_plan.architecture(config))
    mesh = sharding.make_mesh(config.mesh, topologies.find(f"cpu:{devices}")[1])
    return resolve.find(recipes, number), mesh


def small_plan(case: Case, **chip: Any) -> step_plan.Plan:
    recipe, mesh = case
    return step_plan.plan(recipe, dataclasses.replace(chips.CPU, **chip), mesh, links=True)


@pytest.fixture(scope="module")
def planned() -> step_plan.Plan:
    return small_plan(small_case("4"))


def test_recomputation_is_told_apart() -> None:
    """The program does what the shapes say, but for what it masks, reads twice, or does not read."""
    counted = step_plan.count_flops(*small_case("3"))
    assert 0.8 < counted.program / counted.model < 1.15
    assert counted.recomputed > 0
    keeping = {"compute.remat": "none", "compute.vocab_chunk": 0}
    kept = step_plan.count_flops(*small_case("3", keeping))
    assert kept == dataclasses.replace(counted, recomputed=0)


def test_a_plain_stage_counts_exactly() -> None:
    """A prediction at a row's last token is in the count and not in the program."""
    case = small_case("4", {"stage_4.objective": "next_token", "stage_4.teacher": None}, devices=1)
    counted, model = step_plan.count_flops(*case), case[0].model
    masked = flops.attend(model, 16 * 16 - 16 * 17 / 2)  # of 16 queries in one chunk
    unread = flops.vocabulary(model)
    again = flops.attend(model, 16 * 16) // 2  # the backward pass keeps no scores
    assert counted.program == counted.model + 8 * (flops.TRAIN * (masked - unread) + again)
    # Recomputed: the layers but for their last product, and the logits.
    last = 2 * model.num_layers * model.mlp_dim * model.width
    layers = 16 * (flops.dense(model) - last) + flops.attend(model, 16 * 16)
    assert counted.recomputed == 8 * (layers + 15 * flops.vocabulary(model))


def test_bytes_of_a_device_hold_its_share_of_the_state(planned: step_plan.Plan) -> None:
    assert planned.memory is not None
    state = 3 * 4 * planned.parameters  # parameters and two moments, float32
    assert state / 8 < planned.memory.arguments < 1.5 * state / 8
    assert planned.memory.aliased > 0.9 * planned.memory.arguments
    assert planned.memory.peak >= planned.memory.arguments + planned.memory.temporaries
    assert planned.collectives is not None and planned.collectives["all-gather"].bytes > 0


def test_adapters_need_no_optimizer_state_of_the_base() -> None:
    """A device holds its share of the base once, and writes back adapters and their moments alone."""
    case = small_case("4", {"lora.rank": 4})
    found, program = small_plan(case), step_lib.program(*case)

    def share(tree: Any) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    state, frozen, batch = (share(x) for x in (program.state, program.frozen, program.batch))
    assert found.memory is not None
    assert found.memory.arguments == pytest.approx(state + frozen + batch, rel=0.02)
    assert found.memory.aliased == pytest.approx(state, rel=0.02)
    assert decoder.num_params(program.state.optimizer) < 2 * found.trained_parameters + 10
    assert found.trained_parameters < found.parameters / 2
    assert "of them are trained" in printed.parameters(found)


def test_links_are_counted_only_if_asked_for(planned: step_plan.Plan) -> None:
    recipe, mesh = small_case("4")
    plain = step_plan.plan(recipe, chips.CPU, mesh)
    assert plain.collectives is None and plain.times is not None and planned.times is not None
    assert (plain.times.links, plain.times.compute) == (0, planned.times.compute)
    assert planned.times.links > 0 and planned.times.memory > plain.times.memory
    assert printed.collective_rows(plain)[0][1].startswith("not counted; --links")
    assert "links" not in dict(printed.time_rows(plain, step_plan.Utilisation()))


def test_devices_that_repeat_others_are_told(planned: step_plan.Plan) -> None:
    assert (planned.row_groups, planned.working_devices, planned.devices) == (8, 8, 8)
    few = small_plan(small_case("4", {"batch_size": 2, "mesh.data": 4, "mesh.fsdp": 2}))
    assert (few.row_groups, few.working_devices, few.devices) == (2, 2, 8)


def test_what_does_not_fit_comes_with_what_to_change() -> None:
    case = small_case("4", {"compute.remat": "dots"})
    plan = small_plan(case, memory=1_000, memory_is_real=True)
    assert not plan.fits and dataclasses.replace(plan, chip=chips.CPU).fits
    changes = step_plan.advice(*case, plan)
    assert changes[0] == "--config.compute.remat=full" and changes[-1] == "more or larger devices"
    assert "--config.compute.param_dtype=bfloat16" in changes


def test_variants_keep_all_devices_at_work() -> None:
    assert dict(step_plan.variants(*small_case("1"))) == {
        "none": [1, 2],  # 8 sequences of 2 rationales on 8 devices
        "dots": [1, 2],
        "elementwise": [1, 2],
        "full": [1, 2],
    }
    assert dict(step_plan.variants(*small_case("4")))["full"] == [1]


def test_a_compiler_that_runs_out_of_memory_says_how_much() -> None:
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 37.93G of 15.75G HBM."
    )
    assert step_plan._out_of_memory(message) == 37.93 * 2**30
    assert step_plan._out_of_memory("INTERNAL: a bug, 3.00G of it") == 0


# Bad input --------------------


def test_a_config_without_a_vocabulary_asks_for_a_folder() -> None:
    with pytest.raises(UserError, match="give --model=HF_DIR"):
        step_plan.architecture(tiny.get_config())


# The command --------------------


def test_the_command_prints_a_record_and_whether_it_fits() -> None:
    done = run("plan", *COMMAND, "--stage=4", "--topology=cpu:2", "--json")
    record = json.loads(done.stdout)
    assert record["fits"] and record["devices"] == 2 and record["stage"]["name"] == "ntp"
    assert record["flops"]["program"] > 0 and record["tokens_per_second"] > 0
    assert done.stderr == ""


def test_the_command_says_what_to_change() -> None:
    done = run("plan", *COMMAND, "--stage=4", "--topology=cpu:1", "--memory=1e-5", code=1)
    assert done.stdout.splitlines()[-1].startswith("does not fit (")
    assert "--config.compute.param_dtype=bfloat16" in done.stdout
    assert "program FLOPs" in done.stdout and done.stderr == ""


@pytest.mark.exhaustive
def test_the_sweep_names_the_fastest() -> None:
    done = run("plan", *COMMAND, "--stage=4", "--topology=cpu:1", "--sweep")
    last = done.stdout.splitlines()[-1]
    assert last == (
        "fastest that fits, by estimate: --config.compute.remat=none --config.microbatches=1"
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--topology=cpu:3"], "3"),
        (["--topology=cpu:2", "--stage=9"], "there is no stage '9'; there are 1 (think-16-8)"),
        ([], "--topology is missing"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], part: str) -> None:
    assert part in refusal("plan", *COMMAND, *arguments)


# A TPU that is not here --------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(("topology", "devices"), [("v5e:2x2", 4), ("v7x:2x2x1", 8)])
def test_a_tpu_slice_is_compiled_for(topology: str, devices: int) -> None:
    """At the precision of users: the kernels do not compile for a v5e at the tests' own, the highest."""
    done = run_alone(
        "plan",
        *COMMAND,
        "--stage=4",
        f"--topology={topology}",
        "--json",
        environment={"JAX_DEFAULT_MATMUL_PRECISION": "default"},
    )
    record = json.loads(done.stdout)
    assert record["fits"] and record["devices"] == devices and done.stderr == ""
    assert (
        record["memory"]["peak"] < record["chip"]["memory"] == topologies.find(topology)[0].memory
    )
    assert np.isfinite(record["times"]["step"]) and record["collectives"] is None
