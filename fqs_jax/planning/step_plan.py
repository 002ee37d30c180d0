"""The plan of a training step: compute, memory and traffic, compiled for devices that may be absent."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from fqs_jax import huggingface
from fqs_jax.curriculum import objective
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.model import attention, decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.planning import collectives as collectives_lib
from fqs_jax.planning import traced as traced_lib
from fqs_jax.planning.chips import Chip
from fqs_jax.planning.collectives import Collective
from fqs_jax.runs import source
from fqs_jax.runtime import device_memory, local_copies, paths
from fqs_jax.runtime.device_memory import Memory
from fqs_jax.runtime.errors import UserError
from fqs_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one step, on all devices together.

    Attributes:
      model: the FLOPs that the arithmetic needs, counted from shapes (thinking/flops.py).
      program: matrix products of the step, without those that it repeats to save memory.
      recomputed: the repeated ones, and the padding of the last chunk of tokens.
    """

    model: int
    program: int
    recomputed: int


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds that each resource alone would take for one step, at the stated utilisations."""

    compute: float
    links: float
    memory: float

    @property
    def step(self) -> float:
        """A lower bound: the slowest resource alone, as if all of them overlapped completely."""
        return max(self.compute, self.links, self.memory)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step, compiled.

    Attributes:
      parameters: of the model, adapters included; trained_parameters: those that the step changes.
      row_groups: groups of mesh.tensor devices that each work on rows of their own.
      memory: bytes of one device; None if the compiler ran out of memory.
      needed: bytes that the step needs on one device.
      compiler: the compiler's own counts, "flops" and "bytes accessed" of one device.
      collectives: traffic of one device, by kind; None if it was not read.
      times: None if `memory` is.
    """

    stage: Stage
    model: ModelConfig
    chip: Chip
    mesh: dict[str, int]
    batch_size: int
    microbatches: int
    text_tokens: int
    parameters: int
    trained_parameters: int
    row_groups: int
    flops: Flops
    memory: Memory | None
    needed: float
    compiler: dict[str, float]
    collectives: dict[str, Collective] | None
    times: Times | None
    compile_seconds: float

    @property
    def devices(self) -> int:
        return int(np.prod(list(self.mesh.values())))

    @property
    def working_devices(self) -> int:
        """Devices that do not just repeat the work of others."""
        return self.row_groups * self.mesh["tensor"]

    @property
    def fits(self) -> bool:
        return self.memory is not None and (
            self.needed <= self.chip.memory or not self.chip.memory_is_real
        )


# Measured seconds of published plain steps over the estimate for the products that their programs compute:
# the table of benchmarks/plan_calibration.py, which docs/scale.md shows.
MEASURED_OVER_ESTIMATE = (1.00, 1.05)


@dataclasses.dataclass(frozen=True)
class Utilisation:
    """Shares of the chip's peak figures that a step is assumed to reach.

    That of compute is what three published steps reached, 48 to 50 % of the peak with their repeated
    products counted (benchmarks/plan_calibration.py, docs/scale.md). The other two are guesses.
    """

    compute: float = 0.5
    links: float = 0.5
    memory: float = 0.7


def architecture(config: ml_collections.ConfigDict, folder: str = "") -> ModelConfig:
    """The model that a config trains, from a Hugging Face folder or from the section `model`.

    Args:
      folder: has a config.json; weights are not read. Empty = the config's `init_from`.

    Raises:
      UserError: the config names neither.
    """
    if folder := folder or config.init_from:
        model = huggingface.read_config(local_copies.of(paths.expand(folder)))
        return dataclasses.replace(model, **config.compute.to_dict())
    if "vocab_size" not in config.model:
        raise UserError(
            "config.model has no vocab_size, which a tokenizer would set; give --model=HF_DIR or the "
            "source folder of a working directory, --model=W/source"
        )
    return source.described_model(config, **config.compute.to_dict())


def plan(
    recipe: Recipe,
    chip: Chip,
    mesh: Mesh,
    utilisation: Utilisation | None = None,
    links: bool = False,
) -> Plan:
    """Compile the step of a stage for a mesh of devices, attached or not.

    Args:
      links: also read the collectives and the bytes that they move from the compiled program's text.

    Raises:
      UserError: the mesh divides neither the model nor the rows.
    """
    before = time.monotonic()
    step, traced = _trace(recipe, mesh)
    flops = _flops(recipe, mesh, traced)
    needed = 0.0
    try:
        with jax.set_mesh(mesh):
            program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        program, needed = None, _out_of_memory(str(error))
        if not needed:
            raise
    platform = mesh.devices.flat[0].platform
    memory = None if program is None else device_memory.of_program(program, platform)
    text = program.as_text() if links and program is not None else ""
    costs: Any = {} if program is None else program.cost_analysis() or {}
    found = collectives_lib.collectives(text) if text else None
    result = Plan(
        stage=recipe.stage,
        model=recipe.model,
        chip=chip,
        mesh=dict(mesh.shape),
        batch_size=recipe.batch_size,
        microbatches=recipe.microbatches,
        text_tokens=recipe.batch_size * recipe.seq_len,
        parameters=decoder.num_params((step.state.params, step.frozen)),
        trained_parameters=decoder.num_params(step.state.params),
        row_groups=step.row_groups,
        flops=flops,
        memory=memory,
        needed=needed if memory is None else memory.peak,
        compiler={key: costs[key] for key in ("flops", "bytes accessed") if key in costs},
        collectives=found,
        times=None,
        compile_seconds=time.monotonic() - before,
    )
    if memory is None:
        return result
    times = estimate(
        chip,
        (flops.program + flops.recomputed) / result.working_devices,
        memory.arguments + memory.outputs,
        sum(collective.bytes for collective in (found or {}).values()),
        utilisation,
    )
    return dataclasses.replace(result, times=times)


def count_flops(recipe: Recipe, mesh: Mesh) -> Flops:
    """FLOPs of a step, without compiling it."""
    return _flops(recipe, mesh, _trace(recipe, mesh)[1])


def variants(recipe: Recipe, mesh: Mesh) -> Iterator[tuple[str, list[int]]]:
    """The microbatches that leave no group of devices idle, for each remat policy in order of FLOPs."""
    _, most = step_lib.split_rows(dataclasses.replace(recipe, microbatches=1), mesh)
    parts = []
    for count in range(1, recipe.batch_size + 1):
        if recipe.batch_size % count or count & (count - 1):
            continue  # powers of two are enough to choose from
        try:
            _, groups = step_lib.split_rows(dataclasses.replace(recipe, microbatches=count), mesh)
        except UserError:
            continue
        if groups == most:
            parts.append(count)
    for remat in ("none", "dots", "elementwise", "full"):
        yield remat, parts


def advice(recipe: Recipe, mesh: Mesh, result: Plan) -> list[str]:
    """Changes that may make a step fit that does not, the cheapest first."""
    changes = []
    state = 0 if result.memory is None else result.memory.arguments
    if result.model.remat != "full":
        changes.append("--config.compute.remat=full")
    if not result.model.vocab_chunk:
        changes.append("--config.compute.vocab_chunk=2048")
    parts = next(iter(variants(recipe, mesh)))[1]
    if state < result.chip.memory and (more := [p for p in parts if p > recipe.microbatches]):
        changes.append(f"--config.microbatches={more[0]}")
    if recipe.thought and not result.model.position_chunk:
        changes.append("--config.compute.position_chunk=64")
    if result.model.param_dtype == "float32":
        changes.append("--config.compute.param_dtype=bfloat16")
    if result.mesh["data"] > 1:
        changes.append("a smaller --config.mesh.data, so that more devices share the parameters")
    heads = result.mesh["tensor"] * 2
    divides = result.model.num_heads % heads == result.model.mlp_dim % heads == 0
    if divides and result.devices % heads == 0:
        changes.append(f"--config.mesh.tensor={heads}")
    return [*changes, "more or larger devices"]


def _trace(recipe: Recipe, mesh: Mesh) -> tuple[step_lib.Program, Any]:
    """A step and its trace. The step is made outside the mesh, where its random key can exist.

    Raises:
      UserError: attention is to be cuDNN's, which is not installed.
    """
    step = step_lib.program(recipe, mesh, corpus.extra_keys(recipe.data))
    with jax.set_mesh(mesh):
        number = jax.ShapeDtypeStruct((), np.int32)
        try:
            return step, step.step.trace(step.state, step.batch, number, step.frozen)
        except RuntimeError as error:
            if "cuDNN not found" not in str(error):
                raise
            raise UserError(
                "compute.attention=cudnn can only be planned with cuDNN: pip install 'fqs_jax[cuda]', or "
                "leave out --config.compute.attention"
            ) from error


def _flops(recipe: Recipe, mesh: Mesh, traced: Any) -> Flops:
    """FLOPs of a traced step. A second trace that keeps everything shows how many are recomputed.

    Attention is counted as the xla back end computes it: kernels do not show which tiles they skip.
    """
    model = recipe.model

    def flops_with(**changes: Any) -> int:
        changed = dataclasses.replace(recipe, model=dataclasses.replace(model, **changes))
        return traced_lib.matmul_flops(_trace(changed, mesh)[1].jaxpr.jaxpr)

    program = flops_with(remat="none", vocab_chunk=0, attention="xla")
    if attention.choose(model.attention, mesh.devices.flat[0].platform) == "xla":
        total = traced_lib.matmul_flops(traced.jaxpr.jaxpr)
    else:
        total = flops_with(attention="xla")
    return Flops(model=objective.step_flops(recipe), program=program, recomputed=total - program)


def _out_of_memory(message: str) -> float:
    """The bytes needed according to a TPU compiler's message; 0 for any other message."""
    if "HBM" not in message and "Hbm" not in message:
        return 0.0
    found = re.search(r"([\d.]+)([KMGT])", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else 0.0


def estimate(
    chip: Chip, flops: float, state: float, moved: float, utilisation: Utilisation | None = None
) -> Times:
    """The time that one device needs for one step, by resource.

    Args:
      flops: matrix products of the device, the repeated ones included.
      state: bytes that the step reads and writes of its arguments and results.
      moved: bytes over the device's links in one direction; 0 if they were not read.
    """
    shares = utilisation or Utilisation()
    # At least: the state is read and written, and what comes over the links is written and read.
    touched = state + 2 * moved
    return Times(
        compute=flops / (chip.flops * shares.compute),
        links=moved / (chip.link_bandwidth * shares.links),
        memory=touched / (chip.memory_bandwidth * shares.memory),
    )
