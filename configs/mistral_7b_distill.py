"""Mistral-7B: the published thinking stages, then distillation instead of NTP.

python -m fqs_jax.launch --config=configs/mistral_7b_distill.py --init_from=HF_DIR --text=FILE \
    --workdir=W --stage=4
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import common, mistral_7b


def get_config() -> ml_collections.ConfigDict:
    """Stages 1 to 3 and the hardware are those of `mistral_7b`. Not run at this size.

    Results on stage 4 come from models of up to 135M parameters (docs/science.md); expect to search for its
    learning rate and steps.
    """
    return common.with_distillation(mistral_7b.get_config())
