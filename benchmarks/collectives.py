"""Contracts on the collectives of compiled steps: `python -m benchmarks.collectives [--update]`.

Compiles steps of a small model for meshes of virtual devices, and compares what their programs send over
the links with the table of benchmarks/collectives.json: calls and bytes of one device, by kind. Prints a
JSON line for each program, and exits with 1 if one calls more collectives, or moves more bytes, than the
table allows. Nothing is run. The settings are those of configs/mistral_7b.py, in float32. --update writes
the table, and figures are compared only under its JAX version.

The compiler may move nothing out of a loop here. So the figures are those of the program as it was divided
among devices, and a gather inside a loop counts as often as the loop turns.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

if TYPE_CHECKING:
    from fqs_jax.planning.collectives import Call
    from fqs_jax.training.step import Program

TABLE = Path(__file__).with_suffix(".json")
MODEL = {
    "vocab_size": 192,
    "width": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 80,
}
ROWS, TOKENS, VOCAB_CHUNK = 8, 16, 8
# Thoughts of two tokens. No loop over chunks turns as often as the one over layers, or over those tokens.
AHEAD, TALK = 5, 2
STEPS = {"plain": "0", "thinking": "3", "NTP": "4"}
# (data, fsdp, tensor)
MESHES = {
    "data 2": (2, 1, 1),
    "fsdp 2": (1, 2, 1),
    "tensor 2": (1, 1, 2),
    "fsdp 2 x tensor 2": (1, 2, 2),
}
# Nothing is run, so the machine code need not be good.
FAST = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
}

Figures = dict[str, dict[str, float]]  # calls and bytes, by kind
Table = dict[str, Figures]


@dataclasses.dataclass(frozen=True)
class Case:
    """A step on a mesh, as keys of STEPS and MESHES.

    Attributes:
      microbatches: see configs/common.py.
    """

    step: str
    mesh: str
    microbatches: int = 1

    @property
    def name(self) -> str:
        parts = f" in {self.microbatches} microbatches" if self.microbatches > 1 else ""
        return f"{self.step}{parts}, {self.mesh}"


CASES = (
    *(Case("plain", mesh) for mesh in MESHES),
    Case("plain", "fsdp 2", microbatches=2),
    Case("NTP", "fsdp 2"),
    *(Case("thinking", mesh) for mesh in ("data 2", "fsdp 2", "fsdp 2 x tensor 2")),
)


def define_flags() -> None:
    flags.DEFINE_bool("update", False, "Write the table instead of comparing with it.")


def main(_: list[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
    import jax

    found: Table = {}
    for case in CASES:
        found[case.name] = figures(calls(case))
        print(json.dumps({"program": case.name} | found[case.name]), flush=True)
    if flags.FLAGS.update:
        lines = [f"    {json.dumps(name)}: {json.dumps(kinds)}" for name, kinds in found.items()]
        head = f'{{\n  "jax": {json.dumps(jax.__version__)},\n  "programs": {{\n'
        TABLE.write_text(head + ",\n".join(lines) + "\n  }\n}\n")
        return
    table = json.loads(TABLE.read_text())
    if table["jax"] != jax.__version__:
        print(f"the table is that of JAX {table['jax']}, this is {jax.__version__}; not compared")
        return
    complaints = dearer(found, table["programs"])
    print("\n".join(complaints) or "no program sends more than the table says", flush=True)
    sys.exit(bool(complaints))


def program(step: str, sizes: tuple[int, int, int], microbatches: int = 1) -> tuple[Program, Any]:
    """A step of the small model, not yet compiled, and its mesh of `sizes` (data, fsdp, tensor)."""
    import math

    import jax

    from configs import mistral_7b
    from fqs_jax.curriculum import resolve, row
    from fqs_jax.planning import step_plan
    from fqs_jax.runtime import sharding
    from fqs_jax.training import step as step_lib

    c = mistral_7b.get_config()
    c.model.update(MODEL)
    c.model.sliding_window = None
    c.compute.dtype = c.compute.param_dtype = "float32"  # a CPU adds nothing in bfloat16
    c.compute.vocab_chunk = VOCAB_CHUNK
    c.batch_size, c.data.seq_len, c.microbatches = ROWS, TOKENS, microbatches
    c.stage_0 = row("plain", "next_token", steps=10)
    c.stage_3.n_ahead, c.stage_3.n_ahead_talk = AHEAD, TALK
    recipe = resolve.find(resolve.recipes(c, step_plan.architecture(c)), STEPS[step])
    shape = dict(zip(sharding.MESH_AXES, sizes, strict=True))
    mesh = sharding.make_mesh(shape, jax.devices()[: math.prod(sizes)])
    return step_lib.program(recipe, mesh), mesh


def calls(case: Case) -> list[Call]:
    """The collectives of a compiled step."""
    import jax
    import numpy as np

    from fqs_jax.planning import collectives

    made, mesh = program(case.step, MESHES[case.mesh], case.microbatches)
    with jax.set_mesh(mesh):
        compiled = made.step.lower(made.state, made.batch, np.int32(0)).compile(FAST)
    return collectives.calls(compiled.as_text())


def figures(found: Iterable[Call]) -> Figures:
    """Calls of each kind in one step, and bytes over one device's links."""
    from fqs_jax.planning import collectives

    totals = collectives.by_kind(found)
    return {kind: {"calls": x.calls, "bytes": round(x.bytes)} for kind, x in totals.items()}


def dearer(found: Table, table: Table) -> list[str]:
    """One line for every figure that exceeds that of the table."""
    complaints = []
    for name, kinds in found.items():
        if name not in table:
            complaints.append(f"{name}: the table has no such program; see --update")
            continue
        for kind, values in kinds.items():
            for figure, value in values.items():
                allowed = table[name].get(kind, {}).get(figure, 0)
                if value > allowed:
                    complaints.append(f"{name}: {kind}: {value} {figure}, allowed {allowed}")
    return complaints


if __name__ == "__main__":
    define_flags()
    app.run(main)
