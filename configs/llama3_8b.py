"""The published recipe on Llama-3-8B, a model that the paper does not use.

python -m fqs_jax.launch --config=configs/llama3_8b.py --init_from=LLAMA_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

Not run, so hardware, time and metric are unknown. To estimate the devices that it needs:
python -m fqs_jax.plan --config=configs/llama3_8b.py --stage=1 --topology=v5e:4x4
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults and bfloat16 parameters, as for Mistral-7B."""
    # Llama 3.1 has the same sizes and a rope_scaling, which costs nothing.
    c = common.for_checkpoint(
        vocab_size=128256,
        width=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14336,
        max_seq_len=8192,
        rope_theta=500000.0,
    )
    c.compute.param_dtype = "bfloat16"
    return c
