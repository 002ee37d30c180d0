"""Time and memory of one training step: `python -m benchmarks.train_step --shape=A --stage=1 --threads=1`.

Prints one JSON line. Shapes are those in which the published PyTorch code was timed: A is 3.6 M
parameters, 2 sequences of 128 tokens; B 29 M, 1 sequence of 256. Float32, CPU. A step is forward,
backward, clipping and AdamW, as the training loop compiles it.

    shape, stage, threads
    seconds_median              of a step: process CPU seconds for one thread, wall seconds for more
    peak_rss_over_startup_mb    highest resident memory during the steps over that before the first
    flops                       model FLOPs of the step (fqs_jax/flops.py)
    gemm_gflops                 1024^3 float32 product in this process, mean of before and after
    seconds_all, compile_seconds, achieved_gflops, fraction_of_gemm
"""

from __future__ import annotations

import os

from absl import app, flags

_SHAPE = flags.DEFINE_enum("shape", "A", ["A", "B"], "Model and batch.")
_STAGE = flags.DEFINE_enum("stage", "1", ["0", "1", "2", "3", "4"], "0 plain, 1 to 3 think, 4 NTP.")
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.", 1)
_STEPS = flags.DEFINE_integer("steps", 7, "Timed steps.", 1)
_REMAT = flags.DEFINE_string("remat", "elementwise", "What the backward pass recomputes.")
_VOCAB_CHUNK = flags.DEFINE_integer(
    "vocab_chunk", 0, "Tokens whose logits are held at once; 0 = all.", 0
)
_POSITIONS = flags.DEFINE_integer("position_chunk", 16, "Positions scored at once; 0 = all.", 0)
_SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Another text length.", 16)

SHAPES = {
    # model fields, sequences, tokens
    "A": ((1024, 256, 4, 4, 2, 64, 688), 2, 128),
    "B": ((4096, 512, 8, 8, 4, 64, 1376), 1, 256),
}
THOUGHTS = {"1": (16, 8), "2": (12, 4), "3": (8, 4)}
RATIONALES = 2


def main(_: list[str]) -> None:
    # Before JAX starts its thread pools: they are as wide as the CPUs that this process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _THREADS.value])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from benchmarks import measure

    measure.print_step(
        SHAPES[_SHAPE.value],
        THOUGHTS.get(_STAGE.value),
        RATIONALES,
        ntp=_STAGE.value == "4",
        steps=_STEPS.value,
        threads=_THREADS.value,
        seq_len=_SEQ_LEN.value,
        compute={
            "remat": _REMAT.value,
            "vocab_chunk": _VOCAB_CHUNK.value,
            "position_chunk": _POSITIONS.value,
        },
        labels={"shape": _SHAPE.value, "stage": int(_STAGE.value), "threads": _THREADS.value},
    )


if __name__ == "__main__":
    app.run(main)
