"""The published recipe on Gemma-3-270M, a model that the paper does not use.

python -m fqs_jax.launch --config=configs/gemma3_270m.py --init_from=HF_DIR \
    --text='open-web-math/*.jsonl' --workdir=W --stage=1

The sizes are those of config.json of google/gemma-3-270m. Not run, so hardware, time and metric are
unknown. To estimate the devices that it needs:
python -m fqs_jax.plan --config=configs/gemma3_270m.py --stage=1 --topology=v6e:2x2
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The common defaults; float32 parameters are needed for steps of 1e-6, and affordable at this size."""
    return common.for_gemma3(
        width=640,
        num_layers=18,
        mlp_dim=2048,
    )
