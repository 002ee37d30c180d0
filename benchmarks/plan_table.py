"""The page docs/plans.md: `python -m benchmarks.plan_table > docs/plans.md`.

For every model, stage, batch and kind of TPU it searches the smallest slice that the step fits, by
compiling it (libtpu needed), and prints the page. Each compilation is a process of its own
and appends one line to the file of records; what the file has is not compiled again, so the program
may be stopped at any time and started again. Slices are left out only where arithmetic settles it: where
the state and the gradients alone exceed a device's memory (fqs_jax/training/memory.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import runpy
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags
from jax.sharding import Mesh

from benchmarks import plan_records
from benchmarks.plan_records import Record
from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.planning import chips, step_plan, topologies
from fqs_jax.runtime import sharding
from fqs_jax.runtime.device_memory import GIB
from fqs_jax.training import memory as memory_lib

_RECORDS = flags.DEFINE_string(
    "records", "benchmarks/plans.jsonl", "File of the plans, one JSON line for each."
)
_ONLY = flags.DEFINE_list("only", [], "Plan only cases whose command contains all of these.")
_BATCHES = flags.DEFINE_multi_enum(
    "batch", ["8", "256"], ["8", "256"], "Batch sizes to compile for; may be given twice."
)
_COMPILE = flags.DEFINE_bool("compile", True, "Compile what the file does not have.")
_FLOPS = flags.DEFINE_bool("flops", False, "Only print the table of FLOPs, which compiles nothing.")
_MINUTES = flags.DEFINE_float("minutes", float("inf"), "Start no compilation after these.")

MODELS = {
    "Mistral-7B": "configs/mistral_7b.py",
    "Qwen2.5-7B": "configs/qwen2_5_7b.py",
    "Qwen3-8B": "configs/qwen3_8b.py",
    "SmolLM3-3B": "configs/smollm3_3b.py",
}
STAGES = (4, 1, 3, 2)  # the cheapest to compile first
# Microbatches by batch size: 8 sequences at a time.
BATCHES = {8: 1, 256: 32}
# The slices that Google offers of each kind, up to the largest that a step here may need.
SLICES = {
    "v6e": ("2x2", "2x4", "4x4", "4x8"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4"),
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8"),
    "v7x": ("2x2x1", "2x2x2", "2x2x4"),
}
DEVICES_PER_CHIP = {"v7x": 2}
# Rows that devices share by stage: 8 sequences, times 2 rationales if the stage thinks.
ROWS = {1: 16, 2: 16, 3: 16, 4: 8}
# The most by which the estimate of the peak exceeds the compiler's on TPUs (docs/scale.md).
SLACK = 1.2


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    stage: int
    batch: int
    kind: str

    def words(self, shape: str) -> list[str]:
        """Arguments of `python -m fqs_jax.plan` for a slice."""
        found = [
            f"--config={MODELS[self.model]}",
            f"--stage={self.stage}",
            f"--topology={self.kind}:{shape}",
        ]
        if self.batch != 8:
            parts = BATCHES[self.batch]
            found += [f"--config.batch_size={self.batch}", f"--config.microbatches={parts}"]
        if (tensor := self.tensor(shape)) > 1:
            found.append(f"--config.mesh.tensor={tensor}")
        return found

    def tensor(self, shape: str) -> int:
        """Devices that share each row, so that none of a slice is idle."""
        devices = math.prod(int(side) for side in shape.split("x"))
        return max(1, devices * DEVICES_PER_CHIP.get(self.kind, 1) // ROWS[self.stage])


def cases() -> list[Case]:
    """All rows, in the order in which they are compiled."""
    every = itertools.product(BATCHES, STAGES, MODELS, SLICES)
    return [Case(model, stage, batch, kind) for batch, stage, model, kind in every]


def main(_: list[str]) -> None:
    if _FLOPS.value:
        _print_flops()
        return
    path = Path(_RECORDS.value)
    records = plan_records.read(path)
    if _COMPILE.value:
        # First one slice for every row, then the smaller ones that the estimate leaves little hope for.
        stop = time.monotonic() + 60 * _MINUTES.value
        for thorough, case in itertools.product((False, True), cases()):
            if str(case.batch) in _BATCHES.value:
                _search(case, records, path, thorough, stop)
    print(page(records), end="")


def page(records: dict[str, Record]) -> str:
    """The page in Markdown: what the records say of every row, and how many rows are missing."""
    rows = [(case, *smallest(case, records)) for case in sorted(cases(), key=_place)]
    lines = [row(case, record, settled) for case, record, settled in rows if record is not None]
    missing = len(rows) - len(lines)
    count = f"**{len(lines)} of {len(rows)} rows{MISSING.format(missing) if missing else ''}.**"
    unsettled = any(not settled for *_, settled in rows)
    head = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    return "\n".join([INTRODUCTION, count, *[ASTERISK] * unsettled, "", *head, *lines]) + "\n"


def smallest(case: Case, records: dict[str, Record]) -> tuple[Record | None, bool]:
    """The record of the smallest slice that fits, and True if no smaller one is left to try."""
    settled = True
    for shape in SLICES[case.kind]:
        record = records.get(" ".join(case.words(shape)))
        if record is None:
            settled = False
        elif record.get("fits"):
            return record, settled
    return None, settled


def _search(
    case: Case, records: dict[str, Record], path: Path, thorough: bool, stop: float
) -> None:
    """Plan slices from the smallest up to one that fits.

    Args:
      thorough: also compile slices that fit only if the estimate of the memory is too high.
      stop: time after which no compilation starts.
    """
    for shape in SLICES[case.kind]:
        words = case.words(shape)
        command = " ".join(words)
        if command not in records:
            if not all(part in command for part in _ONLY.value) or time.monotonic() > stop:
                continue
            held, peak, memory = _estimated(case, shape)
            if held > memory:
                records[command] = {
                    "command": command,
                    "fits": False,
                    "held": held,
                    "memory": memory,
                }
            elif peak > SLACK * memory and not thorough:
                continue
            elif (record := plan_records.plan(words)) is None:
                continue  # nothing is known of this slice: it stays to be tried
            else:
                records[command] = record
            plan_records.append(path, records[command])
        if records[command].get("fits"):
            return


def _estimated(case: Case, shape: str) -> tuple[float, float, int]:
    """Bytes that a device holds at least, its estimated peak, and its memory; nothing is compiled."""
    jax.config.update("jax_platforms", "cpu")
    chip, devices = topologies.find(f"{case.kind}:{shape}")
    found = memory_lib.estimate(*_recipe(case, shape, devices))
    return found.state + found.gradients, found.peak, chip.memory


def _recipe(case: Case, shape: str, devices: Sequence[jax.Device]) -> tuple[Recipe, Mesh]:
    """The recipe of a row, and the mesh of its devices."""
    config = runpy.run_path(MODELS[case.model])["get_config"]()
    config.batch_size, config.microbatches = case.batch, BATCHES[case.batch]
    config.mesh.tensor = case.tensor(shape)
    recipe = resolve.find(resolve.recipes(config, step_plan.architecture(config)), str(case.stage))
    return recipe, sharding.make_mesh(config.mesh, list(devices))


def _print_flops() -> None:
    """Print the FLOPs of every model and stage at batch 8, on 8 devices and, if it thinks, on 16."""
    jax.config.update("jax_platforms", "cpu")
    every = topologies.find("cpu:16")[1]
    print("| model | stage | FLOPs a text token | program / model | on 16 devices | recomputed |")
    print("|" + "---|" * 6)
    for model, stage in itertools.product(MODELS, sorted(STAGES)):
        found = [
            step_plan.count_flops(*_recipe(Case(model, stage, 8, "v6e"), shape, every[:count]))
            for shape, count in (("2x4", 8), ("4x4", 16))[: 1 + (ROWS[stage] == 16)]
        ]
        ratios = [f"{flops.program / flops.model:.3f}" for flops in found]
        each = found[0].model / (8 * 256)
        again = found[0].recomputed / found[0].program
        cells = model, str(stage), f"{each:.3e}", *(*ratios, "-")[:2], f"{again:.0%}"
        print("| " + " | ".join(cells) + " |", flush=True)


def row(case: Case, record: Record, settled: bool) -> str:
    """One line of the table; an asterisk marks a slice if smaller ones are left to try."""
    flops, tokens = record["flops"], record["tokens"]
    moved = sum(record["links"].values())
    times = plan_records.times(record, chips.TPUS[case.kind])
    topology = next(w for w in record["command"].split() if w.startswith("--topology="))
    cells = [
        case.model,
        str(case.stage),
        f"{case.batch} / {BATCHES[case.batch]}",
        topology.removeprefix("--topology=") + "*" * (not settled),
        *(f"{record['bytes'][name] / GIB:.2f}" for name in ("arguments", "peak")),
        f"{record['memory'] / GIB:.2f}",
        f"{flops['model'] / tokens:.3e}",
        f"{flops['program'] / flops['model']:.3f}",
        f"{flops['recomputed'] / flops['program']:.0%}",
        f"{moved / 1e9:.0f}",
        " / ".join(f"{getattr(times, name):.2f}" for name in ("compute", "links", "memory")),
        f"{tokens / times.step:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _place(case: Case) -> tuple[int, int, int, int]:
    models, kinds = list(MODELS), list(SLICES)
    return models.index(case.model), case.stage, case.batch, kinds.index(case.kind)


INTRODUCTION = """# The smallest slices

The smallest slice of each kind of TPU that a step fits, for the four larger configs, every stage, the
published batch of 8 sequences and 32 times it. Each step was compiled for a slice that was not there (jax
0.10.2, libtpu 0.0.42). A row is one run of `python -m fqs_jax.plan`, whose figures [Scale](scale.md#plan)
explains.

`python -m benchmarks.plan_table > docs/plans.md` makes this page. It compiles what `benchmarks/plans.jsonl`
lacks, adds each result to that file at once, and may be stopped and started again. Slices are left out
without compiling only where the state and the gradients alone exceed a device's memory; the file says
which. All of it took four hours on a core.

Plan compiles with the least effort, which takes a tenth of the time or less (495 s and 52 s for the step of
stage 4 of Mistral-7B on v6e:2x2, beside other work) and finds a peak that is 0.4 % higher there;
collectives are the same. A training run compiles with full effort.

Seconds are estimates at the default utilisations, with `--links`; bytes are those of a device. A chip of
v7x is two devices.
"""

MISSING = "; {} were not compiled yet, and are not filled in by estimate"
ASTERISK = "An asterisk marks a slice of which smaller ones are left to try."

HEADER = (
    "| model | stage | batch / parts | smallest slice | arguments | peak | of (GiB) "
    "| FLOPs a text token | program / model | recomputed | links, GB "
    "| seconds: compute / links / memory | tokens/s |"
)


if __name__ == "__main__":
    app.run(main)
