"""The published recipe, end to end, on SmolLM2-135M-Instruct, with its controls.

python -m fqs_jax.launch --config=configs/smollm2_recipe.py --init_from=HF_DIR \
    --text=gsm8k_train.jsonl --workdir=W --stage=all
"""

from __future__ import annotations

from typing import Any

import ml_collections

from fqs_jax.configs import common, small_hf
from fqs_jax.curriculum import row


def get_config() -> ml_collections.ConfigDict:
    """Thoughts of 13, 9 and 5 tokens, 50 steps each, at a tenth of the positions, then 60 steps of NTP.

    The released runs took about as many steps. The published learning rate of 1e-6 is for models of 7B
    parameters; `configs/sweeps/smollm2_recipe.py` has a bracket around it.
    """
    c = small_hf.get_config()
    common.drop_rows(c)
    c.thought.position_fraction = 0.1
    c.optimizer.warmup_steps = 5
    think: dict[str, Any] = {"objective": "quiet_star", "steps": 50, "learning_rate": 1e-5}
    plain: dict[str, Any] = {"objective": "next_token", "control": True, "learning_rate": 1e-5}
    c.stage_1 = row("think-16-8", n_ahead=16, n_ahead_talk=8, **think)
    c.stage_2 = row("think-12-4", start=1, n_ahead=12, n_ahead_talk=4, **think)
    c.stage_3 = row("think-8-4", start=2, n_ahead=8, n_ahead_talk=4, **think)
    c.stage_4 = row("ntp", "ntp", teacher=2, learning_rate=1e-5, steps=60)
    c.stage_5 = row("same-steps", same_steps_as=(1, 2, 3), **plain)
    c.stage_6 = row("same-flops", same_flops_as=(1, 2, 3), **plain)
    return c
