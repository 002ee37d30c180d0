"""Plan: `python -m fqs_jax.plan --config=configs/mistral_7b.py --stage=1 --topology=v5e:4x4`.

Compiles a stage's training step for devices that may be absent, and prints what it needs of them.
The exit status is 0 if it fits, 1 if not, 2 on bad input. Any field of the config can be overridden:
`--config.microbatches=2 --config.mesh.tensor=4`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.planning import printed, step_plan, topologies
from fqs_jax.planning.step_plan import Plan, Utilisation
from fqs_jax.planning.topologies import GIB, Chip
from fqs_jax.runtime import cli, sharding

_STAGE = flags.DEFINE_string("stage", "1", "Number or name of a stage.")
_TOPOLOGY = flags.DEFINE_string("topology", "", f"What to compile for: {topologies.EXAMPLES}.")
_MODEL = flags.DEFINE_string("model", "", "Folder with the config.json of another model.")
_UTILISATION = flags.DEFINE_float("utilisation", 0.4, "Share of peak FLOP/s to expect.", 0.01, 1.0)
_MEMORY = flags.DEFINE_float("memory", 0.0, "GiB of a device that a step may use; 0 = all.", 0.0)
_SWEEP = flags.DEFINE_bool("sweep", False, "Try microbatches and remat policies.")
_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON (with --sweep, one for each).")


def define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", "configs/mistral_7b.py", "Experiment.", lock_config=True
    )


def main(_: Sequence[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # nothing is run, whatever is attached
    cli.require(topology=_TOPOLOGY.value)
    config = flags.FLAGS.config
    chip, devices = topologies.find(_TOPOLOGY.value)
    if _MEMORY.value:
        limit = int(_MEMORY.value * GIB)
        chip = dataclasses.replace(chip, memory=limit, memory_is_real=True)
    model = step_plan.architecture(config, _MODEL.value)
    recipe = resolve.find(resolve.recipes(config, model), _STAGE.value)
    mesh = sharding.make_mesh(config.mesh, list(devices))
    utilisation = dataclasses.replace(Utilisation(), compute=_UTILISATION.value)
    if _SWEEP.value:
        sys.exit(0 if _sweep(recipe, chip, mesh, utilisation) else 1)
    result = step_plan.plan(recipe, chip, mesh, utilisation)
    changes = [] if result.fits else step_plan.advice(recipe, mesh, result)
    if _JSON.value:
        print(json.dumps(_record(result) | {"change": changes}), flush=True)
    else:
        _show(result, utilisation)
        print(printed.verdict(result, changes), flush=True)
    sys.exit(0 if result.fits else 1)


def _sweep(recipe: Recipe, chip: Chip, mesh: Mesh, utilisation: Utilisation) -> bool:
    """Print the fewest microbatches that fit for each remat policy; more only gather parameters oftener."""
    fastest: Plan | None = None
    table = Table(title=f"{recipe.stage} on {_TOPOLOGY.value}")
    for column in ("remat", "microbatches", "peak GiB", "of GiB", "s/step", "tokens/s", ""):
        table.add_column(column, justify="right")
    for remat, counts in step_plan.variants(recipe, mesh):
        model = dataclasses.replace(recipe.model, remat=remat)
        for count in counts:
            variant = dataclasses.replace(recipe, model=model, microbatches=count)
            result = step_plan.plan(variant, chip, mesh, utilisation)
            if _JSON.value:
                print(json.dumps(_record(result)), flush=True)
            speed = [f"{result.times.step:.3g}", printed.rate(result)] if result.times else ["", ""]
            verdict = "fits" if result.fits else "does not fit"
            sizes = [f"{size / GIB:.2f}" for size in (result.needed, result.chip.memory)]
            table.add_row(remat, str(count), *sizes, *speed, verdict)
            if result.fits:
                if fastest is None or printed.seconds(result) < printed.seconds(fastest):
                    fastest = result
                break
    if not _JSON.value:
        Console(width=110).print(table)
        if fastest is None:
            print("does not fit: nothing of these; take a larger slice")
        else:
            print(
                "fastest that fits, by estimate: "
                f"--config.compute.remat={fastest.model.remat} "
                f"--config.microbatches={fastest.microbatches}"
            )
    return fastest is not None


def _show(result: Plan, utilisation: Utilisation) -> None:
    console = Console(width=110)
    mesh = " x ".join(f"{name} {size}" for name, size in result.mesh.items())
    table = Table(title=f"{result.stage} on {_TOPOLOGY.value}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in (
        ("parameters", f"{result.parameters:,} in {result.model.param_dtype}"),
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
    console.print(table)


def _record(result: Plan) -> dict[str, Any]:
    """Everything, for programs."""
    record = dataclasses.asdict(result) | {
        "topology": _TOPOLOGY.value,
        "devices": result.devices,
        "working_devices": result.working_devices,
        "fits": result.fits,
        "config": config_flags.get_config_filename(flags.FLAGS["config"]),
    }
    if result.times is not None:
        record["times"]["step"] = result.times.step
        record["tokens_per_second"] = result.text_tokens / result.times.step
    return record


if __name__ == "__main__":
    cli.run(main, define_flags)
