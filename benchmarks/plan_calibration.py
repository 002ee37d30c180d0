"""Plan's estimate of a step beside public measurements: `python -m benchmarks.plan_calibration`.

Each record is a training step of plain next-token loss that others ran and timed with MaxText. The same
step of this package (model, rows, tokens, devices, fully sharded parameters) is planned, and the table of
docs/scale.md is printed. Compiling needs libtpu, and JAX's CUDA plugin for the record of GPUs
(pip install 'fqs_jax[plan,plan-gpu]'); plans are kept in a file, and not compiled again.

The programs differ in what they compute again in the backward pass. So the estimate that is compared with
the measurement is that for the products of the record's program, by its stated settings. The plan of our own
step is beside it, with the policy of `compute.remat` that comes nearest.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_collections
from absl import app, flags

from benchmarks import plan_records
from fqs_jax.configs import llama3_8b
from fqs_jax.model.config import ModelConfig
from fqs_jax.planning import chips, gpus, step_plan
from fqs_jax.runtime.device_memory import GIB
from fqs_jax.thinking import flops as flops_lib

_COMPILE = flags.DEFINE_bool(
    "compile_missing", True, "Compile the plans that the file does not have."
)

PLANS = Path("benchmarks/plan_calibration.jsonl")
DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Measured:
    """A step that others ran.

    Attributes:
      name: what was run on what.
      topology: where, as plan calls it.
      seconds: of a step.
      rows: per device. tokens: of a row.
      model: fields of the architecture that differ from configs/llama3_8b.py.
      remat: the policy of `compute.remat` that comes nearest.
      parts: microbatches of this package's step.
      repeats: parts of a layer that the record's program computes again in its backward pass, by its
        stated settings: "mlp" for gate and up, "attention" for scores and weighted values.
    """

    name: str
    topology: str
    seconds: float
    rows: int
    tokens: int
    model: dict[str, int | float]
    remat: str
    parts: int
    repeats: tuple[str, ...]


# MaxText's remat_policy=custom: a layer's input and its q, k, v and o projections go to the host and back.
_OFFLOADED = ("mlp", "attention")
_MISTRAL = {"vocab_size": 32000, "rope_theta": 1e4, "max_seq_len": 32768}
_LLAMA2 = {"vocab_size": 32000, "rope_theta": 1e4, "num_kv_heads": 32, "mlp_dim": 11008}
# tpu-recipes: github.com/AI-Hypercomputer/tpu-recipes, training/trillium/*-MaxText/README.md.
# JAX-Toolbox: github.com/NVIDIA/JAX-Toolbox, rosetta/rosetta/projects/maxtext/README.md of 2024, "Configs".
# MaxText's Mistral-7B has no sliding window.
RECORDS = (
    Measured(
        "Mistral-7B, v6e-8 (tpu-recipes, Mistral-7B-MaxText)",
        "v6e:2x4", 6.320, 6, 8192, _MISTRAL, "full", 1, _OFFLOADED,
    ),
    Measured(
        "Llama-3.1-8B, v6e-8 (tpu-recipes, Llama3.1-8B-MaxText/v6e-8)",
        "v6e:2x4", 3.443, 3, 8192, {}, "full", 1, _OFFLOADED,
    ),
    Measured(
        "Llama-2-7B, 8 x H100 (JAX-Toolbox, MaxText)",
        "h100:8", 0.721, 2, 4096, _LLAMA2, "elementwise", 1, (),
    ),
)  # fmt: skip


def arguments(record: Measured) -> list[str]:
    """Arguments of `python -m fqs_jax.plan` for the step of a record."""
    return [
        "--config=configs/llama3_8b.py",
        f"--topology={record.topology}",
        "--stage=4",
        "--config.stage_4.objective=next_token",
        "--config.stage_4.teacher=None",
        f"--config.batch_size={DEVICES * record.rows}",
        f"--config.microbatches={record.parts}",
        f"--config.data.seq_len={record.tokens}",
        f"--config.compute.remat={record.remat}",
        "--config.compute.param_dtype=float32",
        *(f"--config.model.{name}={value}" for name, value in record.model.items()),
    ]


def chip_of(measured: Measured) -> chips.Chip:
    """The device that a record was measured on."""
    kind = measured.topology.split(":")[0]
    return chips.TPUS[kind] if kind in chips.TPUS else gpus.GPUS[kind].chip


def needed(measured: Measured) -> float:
    """FLOPs that the arithmetic of a record's step needs of one device."""
    return flops_lib.next_token_step(architecture(measured), measured.rows, measured.tokens)


def estimate(measured: Measured) -> float:
    """Seconds of a record's step by plan's rule, for the products that its program computes."""
    done = needed(measured) + repeated(measured)
    return step_plan.estimate(chip_of(measured), done, state=0, moved=0).compute


def row(measured: Measured, plan: plan_records.Record) -> str:
    """One line of the table; the last two cells need a plan."""
    chip = chip_of(measured)
    at_peak = chip.flops * measured.seconds
    cells = [
        measured.name,
        f"{measured.rows} x {measured.tokens:,}",
        f"{measured.seconds:.3f}",
        f"{needed(measured) / at_peak:.1%}",
        f"{(needed(measured) + repeated(measured)) / at_peak:.1%}",
        f"{estimate(measured):.2f}",
        f"{measured.seconds / estimate(measured):.2f}",
    ]
    if "flops" in plan:
        times = plan_records.times(plan, chip)
        traffic = f"{times.links:.2f} / {times.memory:.2f}" if plan["bytes"] else "- / -"
        needs, has = plan["needed"] / GIB, plan["memory"] / GIB
        cells += [f"{times.compute:.2f} / {traffic}", f"{needs:.1f} of {has:.1f}"]
    else:
        cells += [str(plan.get("error", "not compiled")), ""]
    return "| " + " | ".join(cells) + " |"


def repeated(measured: Measured) -> float:
    """FLOPs of one device that the record's program spends on what it did not keep."""
    model = architecture(measured)
    of_token = 0.0
    if "mlp" in measured.repeats:
        of_token += 2 * model.num_layers * 2 * model.width * model.mlp_dim
    if "attention" in measured.repeats:
        of_token += flops_lib.attend(
            model, (measured.tokens + 1) / 2
        )  # keys that a query sees, the mean
    return measured.rows * measured.tokens * of_token


def architecture(measured: Measured) -> ModelConfig:
    """The model of a record."""
    config: ml_collections.ConfigDict = llama3_8b.get_config()
    config.model.update(measured.model)
    return step_plan.architecture(config)


HEADER = (
    "| step | rows of a device | measured, s | model FLOPs, of peak | all FLOPs, of peak | estimate, s "
    "| measured / estimate | our step: compute / links / memory, s | its peak (GiB) |"
)


def main(_: list[str]) -> None:
    plans = plan_records.read(PLANS)
    for measured in RECORDS:
        words = arguments(measured)
        if " ".join(words) in plans or not _COMPILE.value:
            continue
        if (record := plan_records.plan(words)) is not None:
            plans[" ".join(words)] = record
            plan_records.append(PLANS, record)
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1))
    for measured in RECORDS:
        print(row(measured, plans.get(" ".join(arguments(measured)), {})))


if __name__ == "__main__":
    app.run(main)
