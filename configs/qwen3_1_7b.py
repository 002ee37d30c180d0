"""The published recipe on Qwen3-1.7B, a model that the paper does not use.

python -m fqs_jax.launch --config=configs/qwen3_1_7b.py --init_from=HF_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

The sizes are those of config.json of Qwen/Qwen3-1.7B. Not run, so hardware, time and metric are
unknown. To estimate the devices that it needs:
python -m fqs_jax.plan --config=configs/qwen3_1_7b.py --stage=1 --topology=v5e:4x4
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults; float32 parameters are needed for steps of 1e-6, and affordable at this size."""
    c = common.for_checkpoint(
        vocab_size=151936,
        width=2048,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=6144,
        max_seq_len=40960,
        rope_theta=1e6,
        norm_eps=1e-6,
        qk_norm="head",
        tied_embeddings=True,
    )
    return c
