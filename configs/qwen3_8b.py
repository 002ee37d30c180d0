"""The published recipe on Qwen3-8B, a model that the paper does not use.

python -m fqs_jax.launch --config=configs/qwen3_8b.py --init_from=HF_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

The sizes are those of config.json of Qwen/Qwen3-8B. Not run, so hardware, time and metric are
unknown. To estimate the devices that it needs:
python -m fqs_jax.plan --config=configs/qwen3_8b.py --stage=1 --topology=v5e:4x4
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults and bfloat16 parameters, as for Mistral-7B."""
    c = common.for_qwen3(
        width=4096,
        num_layers=36,
        num_heads=32,
        mlp_dim=12288,
    )
    c.compute.param_dtype = "bfloat16"
    return c
