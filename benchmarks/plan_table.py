"""The table of docs/scale.md: `python -m benchmarks.plan_table --records=plans.jsonl`.

For every model, stage, batch and kind of TPU, it plans slices from the smallest that could hold the
parameters up to the first that fits, each in its own process (libtpu needed), and prints the table as
Markdown. Records are appended to the file; a plan that the file already has is not compiled again.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

_RECORDS = flags.DEFINE_string(
    "records", "plans.jsonl", "File of the plans, one JSON line for each."
)
_ONLY = flags.DEFINE_list("only", [], "Plan only cases whose command contains all of these.")
_TABLE = flags.DEFINE_bool("table", False, "Only print the table of the existing records.")

CONFIGS = {"Mistral-7B": "configs/mistral_7b.py", "Qwen2.5-7B": "configs/qwen2_5_7b.py"}
STAGES = (1, 2, 3, 4)
SLICES = {
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8"),
    "v6e": ("2x2", "2x4", "4x4", "4x8"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4"),
}
# Microbatches by batch size: 8 sequences at a time.
BATCHES = {8: 1, 256: 32}
# Rows that devices share by stage: 8 sequences, times 2 rationales if the stage thinks.
ROWS = {1: 16, 2: 16, 3: 16, 4: 8}
GIB = 2**30


def arguments(config: str, stage: int, batch: int, topology: str) -> list[str]:
    """Arguments of `python -m fqs_jax.plan` for a plan."""
    words = [f"--config={config}", f"--stage={stage}", f"--topology={topology}"]
    devices = 1
    for side in topology.split(":")[1].split("x"):
        devices *= int(side)
    if batch != 8:
        words += [f"--config.batch_size={batch}", f"--config.microbatches={BATCHES[batch]}"]
    if devices > ROWS[stage]:
        words.append(f"--config.mesh.tensor={devices // ROWS[stage]}")
    return words


def plan(words: list[str]) -> dict[str, Any]:
    """The record of a plan; {"error": ...} if the slice does not divide the rows.

    Raises:
      RuntimeError: the program failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "fqs_jax.plan", *words, "--json"], capture_output=True, text=True
    )
    if done.returncode == 2:
        return {"error": done.stderr.strip(), "command": words}
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) | {"command": words}


def cases() -> list[tuple[str, int, int, str]]:
    """All cases: (config, stage, batch, kind of TPU)."""
    return list(itertools.product(CONFIGS.values(), STAGES, BATCHES, SLICES))


def smallest(
    records: dict[str, dict[str, Any]], case: tuple[str, int, int, str]
) -> tuple[dict[str, Any] | None, bool]:
    """The record of the smallest slice that fits, and True if all smaller ones were tried."""
    config, stage, batch, kind = case
    all_tried = True
    for shape in SLICES[kind]:
        words = arguments(config, stage, batch, f"{kind}:{shape}")
        command = " ".join(words)
        wanted = not _TABLE.value and all(part in command for part in _ONLY.value)
        if command not in records and wanted:
            print(command, file=sys.stderr, flush=True)
            records[command] = plan(words)
            with Path(_RECORDS.value).open("a") as file:
                file.write(json.dumps(records[command]) + "\n")
        if command not in records:
            all_tried = False
        elif records[command].get("fits"):
            return records[command], all_tried
    return None, all_tried


def row(record: dict[str, Any], all_tried: bool) -> str:
    """One line of the table; an asterisk marks a slice if smaller ones were not tried."""
    flops, memory, times = record["flops"], record["memory"], record["times"]
    tokens = record["text_tokens"]
    cells = [
        next(name for name, path in CONFIGS.items() if path == record["config"]),
        str(record["stage"]["number"]),
        f"{record['batch_size']} / {record['microbatches']}",
        record["topology"] + "*" * (not all_tried),
        *(f"{memory[name] / GIB:.2f}" for name in ("arguments", "temporaries", "peak")),
        f"{record['chip']['memory'] / GIB:.2f}",
        f"{flops['model'] / tokens:.3e}",
        f"{flops['program'] / flops['model']:.3f}",
        f"{flops['recomputed'] / flops['program']:.0%}",
        f"{sum(found['bytes'] for found in record['collectives'].values()) / 1e9:.0f}",
        f"{times['compute']:.1f} / {times['links']:.1f}",
        f"{record['tokens_per_second']:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| model | stage | batch / parts | smallest slice | arguments | temporaries | peak | of (GiB) "
    "| FLOPs a text token | program / model | recomputed | links, GB | seconds: compute / links "
    "| tokens/s |"
)


def main(_: list[str]) -> None:
    path = Path(_RECORDS.value)
    lines = path.read_text().splitlines() if path.exists() else []
    records = {" ".join(r["command"]): r for r in map(json.loads, lines)}
    found = [smallest(records, case) for case in cases()]
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1))
    for record, all_tried in found:
        if record is not None:
            print(row(record, all_tried))


if __name__ == "__main__":
    app.run(main)
