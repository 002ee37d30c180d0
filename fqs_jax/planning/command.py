"""The work of `python -m fqs_jax.plan`: a stage is planned and printed as its flags say."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from rich.table import Table

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.planning import printed, step_plan, topologies
from fqs_jax.planning.chips import Chip
from fqs_jax.planning.step_plan import Plan, Utilisation
from fqs_jax.runtime import cli, config_flag, screen, sharding
from fqs_jax.runtime.device_memory import GIB


def main() -> int:
    """Plan the stage that the flags name, and print what it needs.

    Returns:
      The exit code: 0 if it fits, 1 if not.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing is run, whatever is attached
    # JAX cannot read back programs for devices that are absent, and warns about it.
    jax.config.update("jax_enable_compilation_cache", False)
    cli.require(topology=flags.FLAGS.topology)
    config = flags.FLAGS.config
    chip, devices = topologies.find(flags.FLAGS.topology)
    if devices[0].platform == "tpu":
        # A tenth of the time to compile; the peak was 0.4 % higher (docs/scale.md).
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    if flags.FLAGS.memory:
        limit = int(flags.FLAGS.memory * GIB)
        chip = dataclasses.replace(chip, memory=limit, memory_is_real=True)
    model = step_plan.architecture(config, flags.FLAGS.model)
    recipe = resolve.find(resolve.recipes(config, model), flags.FLAGS.stage)
    mesh = sharding.make_mesh(config.mesh, list(devices))
    utilisation = dataclasses.replace(Utilisation(), compute=flags.FLAGS.utilisation)
    if flags.FLAGS.sweep:
        return 0 if _sweep(recipe, chip, mesh, utilisation) else 1
    result = step_plan.plan(recipe, chip, mesh, utilisation, flags.FLAGS.links)
    changes = [] if result.fits else step_plan.advice(recipe, mesh, result)
    if flags.FLAGS.json:
        screen.print_json(_record(result) | {"change": changes})
    else:
        _show(result, utilisation)
        print(printed.verdict(result, changes), flush=True)
    return 0 if result.fits else 1


def _sweep(recipe: Recipe, chip: Chip, mesh: Mesh, utilisation: Utilisation) -> bool:
    """Print the fewest microbatches that fit for each remat policy; more only gather parameters oftener."""
    fastest: Plan | None = None
    table = Table(title=f"{recipe.stage} on {flags.FLAGS.topology}")
    for column in ("remat", "microbatches", "peak GiB", "of GiB", "s/step", "tokens/s", ""):
        table.add_column(column, justify="right")
    for remat, counts in step_plan.variants(recipe, mesh):
        model = dataclasses.replace(recipe.model, remat=remat)
        for count in counts:
            variant = dataclasses.replace(recipe, model=model, microbatches=count)
            result = step_plan.plan(variant, chip, mesh, utilisation, flags.FLAGS.links)
            if flags.FLAGS.json:
                screen.print_json(_record(result))
            speed = [f"{result.times.step:.3g}", printed.rate(result)] if result.times else ["", ""]
            verdict = f"fits{printed.condition(result)}" if result.fits else "does not fit"
            sizes = [f"{size / GIB:.2f}" for size in (result.needed, result.chip.memory)]
            table.add_row(remat, str(count), *sizes, *speed, verdict)
            if result.fits:
                if fastest is None or printed.seconds(result) < printed.seconds(fastest):
                    fastest = result
                break
    if not flags.FLAGS.json:
        screen.show(table, 110)
        if fastest is None:
            print("does not fit: nothing of these; take more or larger devices")
        else:
            print(
                "fastest that fits, by estimate: "
                f"--config.compute.remat={fastest.model.remat} "
                f"--config.microbatches={fastest.microbatches}{printed.condition(fastest)}"
            )
    return fastest is not None


def _show(result: Plan, utilisation: Utilisation) -> None:
    mesh = " x ".join(f"{name} {size}" for name, size in result.mesh.items())
    table = Table(title=f"{result.stage} on {flags.FLAGS.topology}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in (
        ("parameters", printed.parameters(result)),
        ("devices", f"{result.devices} x {result.chip.name}; mesh {mesh}"),
        ("at work", printed.row_groups(result)),
        ("a step", printed.batch(result)),
        *printed.memory_rows(result),
        *printed.flop_rows(result),
        *printed.collective_rows(result),
        *printed.time_rows(result, utilisation),
        ("compiled in", f"{result.compile_seconds:.0f} s"),
    ):
        table.add_row(name, value)
    screen.show(table, 110)


def _record(result: Plan) -> dict[str, Any]:
    """Everything, for programs."""
    record = dataclasses.asdict(result) | {
        "topology": flags.FLAGS.topology,
        "devices": result.devices,
        "working_devices": result.working_devices,
        "fits": result.fits,
        "config": config_flag.file(),
    }
    if result.times is not None:
        record["times"]["step"] = result.times.step
        record["tokens_per_second"] = result.text_tokens / result.times.step
    return record
