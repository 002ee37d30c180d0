"""The published recipe on Qwen2.5-0.5B-Instruct: the same code path as the 7B models, on one GPU.

python -m fqs_jax.launch --config=configs/qwen2_5_0_5b.py --init_from=QWEN_DIR --text=FILE \
    --workdir=W --stage=1

Not run, so hardware, time and metric are unknown. To estimate the devices that it needs:
python -m fqs_jax.plan --config=configs/qwen2_5_0_5b.py --stage=1 --topology=v6e:2x2
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults; float32 parameters are needed for steps of 1e-6, and affordable at this size."""
    c = common.for_checkpoint(
        vocab_size=151936,
        width=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        mlp_dim=4864,
        max_seq_len=32768,
        rope_theta=1e6,
        norm_eps=1e-6,
        qkv_bias=True,
        tied_embeddings=True,
    )
    return c
