"""The published recipe on Gemma-3-1B, a model that the paper does not use.

python -m fqs_jax.launch --config=configs/gemma3_1b.py --init_from=HF_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

The sizes are those of config.json of google/gemma-3-1b-it. Not run, so hardware, time and metric are
unknown. To estimate the devices that it needs:
python -m fqs_jax.plan --config=configs/gemma3_1b.py --stage=1 --topology=v6e:2x2
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults; float32 parameters are needed for steps of 1e-6, and affordable at this size."""
    c = common.for_checkpoint(
        vocab_size=262144,
        width=1152,
        num_layers=26,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        mlp_dim=6912,
        max_seq_len=32768,
        rope_theta=1e6,
        norm_eps=1e-6,
        qk_norm="head",
        norms="both",
        activation="gelu_tanh",
        scaled_embeddings=True,
        stored_norm_offset=1.0,
        tied_embeddings=True,
        sliding_window=512,
        layer_types=("sliding",) * 5 + ("full",),
        local_rope_theta=10000.0,
    )
    return c
