"""The published recipe on OLMo-2-1B, a model that the paper does not use.

python -m fqs_jax.launch --config=configs/olmo2_1b.py --init_from=HF_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

The sizes are those of config.json of allenai/OLMo-2-0425-1B. Not run, so hardware, time and metric are
unknown. To estimate the devices that it needs:
python -m fqs_jax.plan --config=configs/olmo2_1b.py --stage=1 --topology=v6e:2x2
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults; float32 parameters are needed for steps of 1e-6, and affordable at this size."""
    c = common.for_checkpoint(
        vocab_size=100352,
        width=2048,
        num_layers=16,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        mlp_dim=8192,
        max_seq_len=4096,
        rope_theta=500000.0,
        norm_eps=1e-6,
        qk_norm="projection",
        norms="after",
    )
    return c
