"""The published recipe on Qwen2.5-7B (base or Instruct), the second model of the Fast Quiet-STaR paper.

python -m fqs_jax.launch --config=configs/qwen2_5_7b.py --init_from=QWEN_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

Not run, so hardware, time and metric are unknown. Compiled ahead of time for TPU slices: docs/scale.md, or
python -m fqs_jax.plan --config=configs/qwen2_5_7b.py --stage=1 --topology=v5e:4x4
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults and bfloat16 parameters, as for Mistral-7B."""
    c = common.for_checkpoint(
        vocab_size=152064,
        width=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        mlp_dim=18944,
        max_seq_len=32768,
        rope_theta=1e6,
        norm_eps=1e-6,
        qkv_bias=True,
    )
    c.compute.param_dtype = "bfloat16"
    return c
