"""Fast Quiet-STaR on Mistral-7B-v0.1, as published.

python -m fqs_jax.launch --config=configs/mistral_7b.py --init_from=MISTRAL_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

Not run, so hardware, time and metric are unknown. Compiled ahead of time for TPU slices: docs/scale.md, or
python -m fqs_jax.plan --config=configs/mistral_7b.py --stage=1 --topology=v5e:4x4
Published: 8 GPUs of 80 GB; stages of 150, 150, 150 and 300 steps. Later stages used the checkpoints
at step 50 of stage 1 and at step 30 of stage 2.
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults, which are the published values, and bfloat16 parameters, also published."""
    c = common.for_checkpoint(
        vocab_size=32000,
        width=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14336,
        max_seq_len=32768,
        sliding_window=4096,
    )
    c.compute.param_dtype = "bfloat16"
    c.thought.reset_marks_at_eval = True
    return c
