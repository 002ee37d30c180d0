"""Plan: `python -m fqs_jax.plan --config=configs/mistral_7b.py --stage=1 --topology=v5e:4x4`.

Compiles a stage's training step for devices that need not be here, and says what it needs of them.
Exit 0 if it fits, 1 if not, 2 on bad input. Any field of the config can be overridden:
`--config.microbatches=2 --config.mesh.tensor=4`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from fqs_jax import planning, topologies
from fqs_jax.curriculum import checks
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.planning import Plan, Utilisation
from fqs_jax.runtime import cli, sharding
from fqs_jax.topologies import GIB

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
    model = planning.architecture(config, _MODEL.value)
    stage = stage_lib.find(checks.read_stages(config, model), _STAGE.value)
    mesh = sharding.make_mesh(config.mesh, list(devices))
    utilisation = dataclasses.replace(Utilisation(), compute=_UTILISATION.value)

    def compile_with(**changes: Any) -> Plan:
        config.update(changes)
        chosen = dataclasses.replace(model, remat=config.compute.remat)
        return planning.plan(config, stage, chosen, chip, mesh, utilisation)

    if _SWEEP.value:
        sys.exit(0 if _sweep(config, stage, mesh, compile_with) else 1)
    result = compile_with()
    changes = [] if result.fits else planning.advice(config, stage, mesh, result)
    if _JSON.value:
        print(json.dumps(_record(result) | {"change": changes}), flush=True)
    else:
        _show(result, utilisation)
        print(_verdict(result, changes), flush=True)
    sys.exit(0 if result.fits else 1)


def _sweep(config: ml_collections.ConfigDict, stage: Stage, mesh: Mesh, compile_with: Any) -> bool:
    """For each remat policy the fewest microbatches that fit; more only gather parameters oftener."""
    fastest: Plan | None = None
    table = Table(title=f"{stage} on {_TOPOLOGY.value}")
    for column in ("remat", "microbatches", "peak GiB", "of GiB", "s/step", "tokens/s", ""):
        table.add_column(column, justify="right")
    for remat, counts in planning.variants(config, stage, mesh):
        for count in counts:
            result = compile_with(microbatches=count, compute={"remat": remat})
            if _JSON.value:
                print(json.dumps(_record(result)), flush=True)
            speed = [f"{result.times.step:.3g}", _rate(result)] if result.times else ["", ""]
            verdict = "fits" if result.fits else "does not fit"
            sizes = [f"{size / GIB:.2f}" for size in (result.needed, result.chip.memory)]
            table.add_row(remat, str(count), *sizes, *speed, verdict)
            if result.fits:
                if fastest is None or _seconds(result) < _seconds(fastest):
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


def _seconds(result: Plan) -> float:
    return result.times.step if result.times else float("inf")


def _rate(result: Plan) -> str:
    return f"{result.text_tokens / _seconds(result):,.0f}"


def _verdict(result: Plan, changes: list[str]) -> str:
    sizes = f"{result.needed / GIB:.2f} of {result.chip.memory / GIB:.2f} GiB a device"
    if result.fits and not result.chip.memory_is_real:
        return f"fits ({result.needed / GIB:.2f} GiB a device; on CPUs this is indicative only)"
    if result.fits:
        return f"fits ({sizes})"
    return f"does not fit ({sizes}); try, in this order: {'; '.join(changes)}"


def _show(result: Plan, utilisation: Utilisation) -> None:
    console = Console(width=110)
    mesh = " x ".join(f"{name} {size}" for name, size in result.mesh.items())
    table = Table(title=f"{result.stage} on {_TOPOLOGY.value}", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in (
        ("parameters", f"{result.parameters:,} in {result.model.param_dtype}"),
        ("devices", f"{result.devices} x {result.chip.name}; mesh {mesh}"),
        ("at work", _at_work(result)),
        ("a step", _batch(result)),
        *_memory_rows(result),
        *_flop_rows(result),
        *_collective_rows(result),
        *_time_rows(result, utilisation),
        ("compiled in", f"{result.compile_seconds:.0f} s"),
    ):
        table.add_row(name, value)
    console.print(table)


def _at_work(result: Plan) -> str:
    idle = result.devices - result.working_devices
    text = f"{result.row_groups} groups of {result.mesh['tensor']} device(s), each with rows of its own"
    if idle:
        text += f"; {idle} devices repeat what others do: use a larger batch, or mesh.tensor"
    return text


def _batch(result: Plan) -> str:
    parts = f" in {result.microbatches} microbatches" if result.microbatches > 1 else ""
    return (
        f"{result.batch_size} sequences, {result.text_tokens:,} tokens of text{parts}; "
        f"remat {result.model.remat}"
    )


def _memory_rows(result: Plan) -> list[tuple[str, str]]:
    """Bytes of one device."""
    limit = f"{result.chip.memory / GIB:.2f} GiB"
    if result.memory is None:
        return [("memory", f"the compiler needs {result.needed / GIB:.2f} GiB, there are {limit}")]
    sizes = dataclasses.asdict(result.memory)
    rows = [(name, f"{sizes[name] / GIB:.3f} GiB") for name in sizes if name != "peak"]
    of = f"of {limit}" if result.chip.memory_is_real else "(CPU memory figures are indicative)"
    return [*rows, ("peak", f"{result.needed / GIB:.3f} GiB {of}")]


def _flop_rows(result: Plan) -> list[tuple[str, str]]:
    flops, tokens = result.flops, result.text_tokens
    again = flops.recomputed / flops.program
    rows = [
        ("model FLOPs", f"{flops.model / tokens:.4e} a text token, from shapes"),
        (
            "program FLOPs",
            f"{flops.program / tokens:.4e} a text token, {flops.program / flops.model:.3f} x the "
            "model's: matrix products, without recomputation",
        ),
        ("recomputed", f"{flops.recomputed / tokens:.4e} a text token, {again:.1%} on top"),
    ]
    if "flops" in result.compiler:
        counts = ", ".join(f"{name} {value:.3e}" for name, value in result.compiler.items())
        rows.append(("compiler says", f"{counts} a device; it counts the body of a loop once"))
    return rows


def _collective_rows(result: Plan) -> list[tuple[str, str]]:
    return [
        (kind, f"{found.bytes / 1e9:.3f} GB over a device's links, {found.calls:,} calls")
        for kind, found in result.collectives.items()
    ]


def _time_rows(result: Plan, utilisation: Utilisation) -> list[tuple[str, str]]:
    if (times := result.times) is None:
        return []
    return [
        ("compute", f"{times.compute:.3g} s at {utilisation.compute:.0%} of {result.chip.flops:.3g} FLOP/s"),
        ("links", f"{times.links:.3g} s at {utilisation.links:.0%} of {result.chip.link_bandwidth:.3g} B/s"),
        (
            "memory traffic",
            f"at least {times.memory:.3g} s at {utilisation.memory:.0%} of "
            f"{result.chip.memory_bandwidth:.3g} B/s",
        ),
        ("estimated step", f"{times.step:.3g} s, the longest of these; {_rate(result)} text tokens/s"),
    ]  # fmt: skip


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
