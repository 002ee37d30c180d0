"""The published recipe on SmolLM3-3B, a model that the paper does not use.

python -m fqs_jax.launch --config=configs/smollm3_3b.py --init_from=HF_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

The sizes are those of config.json of HuggingFaceTB/SmolLM3-3B. Not run, so hardware, time and metric are
unknown. To estimate the devices that it needs:
python -m fqs_jax.plan --config=configs/smollm3_3b.py --stage=1 --topology=v5e:4x4
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults; float32 parameters are needed for steps of 1e-6, and affordable at this size."""
    c = common.for_checkpoint(
        vocab_size=128256,
        width=2048,
        num_layers=36,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        mlp_dim=11008,
        max_seq_len=65536,
        rope_theta=5e6,
        norm_eps=1e-6,
        tied_embeddings=True,
        layer_types=("full",) * 3 + ("no_rope",),
    )
    return c
