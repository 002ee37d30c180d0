"""The whole curriculum on a small Hugging Face checkpoint and your own text, on a laptop.

python -m fqs_jax.launch --config=configs/small_hf.py --init_from=HF_DIR --text=FILE \
    --workdir=W --stage=all --max_steps=20
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """The published recipe in float32 on packed rows of 128 tokens, at higher learning rates.

    With these rates a few steps have a visible effect.
    """
    c = common.for_checkpoint()
    c.compute.dtype = "float32"
    c.compute.remat = "elementwise"
    c.compute.vocab_chunk = 0
    c.compute.position_chunk = 8
    c.batch_size = 4
    c.data.seq_len = 128
    c.data.rows = "pack"
    c.checkpoint_every = 50
    for stage, learning_rate in (
        (c.stage_1, 2e-5),
        (c.stage_2, 1e-5),
        (c.stage_3, 1e-5),
        (c.stage_4, 1e-6),
    ):
        stage.learning_rate = learning_rate
    return c
