"""Time and memory of one training step: `python -m benchmarks.train_step --shape=A --stage=1 --threads=1`.

Prints one JSON line. Shapes are those that the published PyTorch code was timed with: A has 3.6 M
parameters and 2 sequences of 128 tokens, B has 29 M and 1 sequence of 256. Float32, CPU. A step is the
forward and backward pass, clipping and AdamW, as the training loop compiles it.

    shape, stage, threads
    seconds_median              median of the steps: process CPU seconds for one thread, else wall seconds
    floor_seconds               time of the step's FLOPs at the rate gemm_gflops
    ratio_to_floor              seconds_median over floor_seconds
    peak_rss_over_startup_mb    peak of resident memory during the steps, less that before the first one
    flops                       model FLOPs of the step (fqs_jax/thinking/flops.py)
    gemm_gflops                 rate of a 1024^3 float32 product, mean of before and after the steps
    seconds_all, compile_seconds, achieved_gflops

--checkpoint=HF_DIR takes the architecture of a checkpoint (its weights are not read), with --rows sequences
of --seq_len tokens. --torch alternates the plain step with the same step of transformers' model in torch:

    other_seconds_median, other_gemm_gflops, other_seconds_all
    other_step_peak_mb          peak of resident memory in a step, less that before it
    faster                      their seconds over ours, each times the GEMM rate of its side

The published size of docs/performance.md, each command on a quiet machine:

    python -m benchmarks.train_step --checkpoint=HF_DIR --rows=2 --seq_len=128 --stage=0 --torch
    python -m benchmarks.train_step --checkpoint=HF_DIR --rows=2 --seq_len=128 --stage=3 --steps=3
    python -m benchmarks.train_step --checkpoint=HF_DIR --rows=2 --seq_len=128 --stage=3 --steps=3 \\
        --position_fraction=0.25
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.shapes import COMPUTE, RATIONALES, SHAPES, THOUGHTS

_SHAPE = flags.DEFINE_enum("shape", "A", ["A", "B"], "Model and batch.")
_STAGE = flags.DEFINE_enum("stage", "1", ["0", "1", "2", "3", "4"], "0 plain, 1 to 3 think, 4 NTP.")
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.", 1)
_STEPS = flags.DEFINE_integer("steps", 7, "Timed steps.", 1)
_REMAT = flags.DEFINE_string(
    "remat", COMPUTE["remat"], "Remat policy: what the backward pass recomputes."
)
_VOCAB_CHUNK = flags.DEFINE_integer(
    "vocab_chunk", COMPUTE["vocab_chunk"], "Tokens whose logits exist at once; 0 = all.", 0
)
_POSITIONS = flags.DEFINE_integer(
    "position_chunk", COMPUTE["position_chunk"], "Positions scored at once; 0 = all.", 0
)
_SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Another text length.", 16)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face folder instead of a shape.")
_ROWS = flags.DEFINE_integer("rows", 2, "Sequences, with --checkpoint.", 1)
_FRACTION = flags.DEFINE_float(
    "position_fraction", 1.0, "Share of the positions with thoughts, with --checkpoint.", 0.0, 1.0
)
_TORCH = flags.DEFINE_bool("torch", False, "Alternate with torch, with --checkpoint --stage=0.")


def main(_: list[str]) -> None:
    # Before JAX starts its thread pools, which are as wide as the CPUs that this process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _THREADS.value])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from benchmarks import measure

    compute = {
        "remat": _REMAT.value,
        "vocab_chunk": _VOCAB_CHUNK.value,
        "position_chunk": _POSITIONS.value,
    }
    if _CHECKPOINT.value:
        _measure_checkpoint(Path(_CHECKPOINT.value), compute)
        return
    measured = measure.kind(
        SHAPES[_SHAPE.value],
        THOUGHTS.get(_STAGE.value),
        RATIONALES,
        ntp=_STAGE.value == "4",
        length=_SEQ_LEN.value,
        compute=compute,
    )
    labels = {"shape": _SHAPE.value, "stage": int(_STAGE.value), "threads": _THREADS.value}
    measure.print_step(measured, _STEPS.value, _THREADS.value, labels)


def _measure_checkpoint(folder: Path, compute: dict[str, Any]) -> None:
    from benchmarks import measure
    from fqs_jax.objectives.thought_losses import QuietStarConfig

    length = _SEQ_LEN.value or 128
    measured = measure.kind_of_checkpoint(
        folder,
        THOUGHTS.get(_STAGE.value),
        RATIONALES,
        _ROWS.value,
        length,
        compute,
        QuietStarConfig(position_fraction=_FRACTION.value),
    )
    other = None
    if _TORCH.value:
        if _STAGE.value != "0":
            raise app.UsageError("--torch makes plain steps: give --stage=0")
        from benchmarks import torch_step

        other = functools.partial(torch_step.make, folder, _ROWS.value, length, _THREADS.value)
    labels = {"checkpoint": folder.name, "stage": int(_STAGE.value), "threads": _THREADS.value}
    labels |= {"rows": _ROWS.value, "position_fraction": _FRACTION.value}
    measure.print_step(measured, _STEPS.value, _THREADS.value, labels, other)


if __name__ == "__main__":
    app.run(main)
