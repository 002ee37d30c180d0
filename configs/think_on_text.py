"""Thinking on ordinary text with a small checkpoint: the tiny default's settings, and a control.

python -m fqs_jax.launch --config=configs/think_on_text.py --init_from=HF_DIR --text=FILE \
    --workdir=W --stage=all
python -m fqs_jax.evaluate --workdir=W --all_stages --text=HELD_OUT
"""

from __future__ import annotations

from typing import Any

import ml_collections

from fqs_jax.configs import common, small_hf
from fqs_jax.curriculum import row


def get_config() -> ml_collections.ConfigDict:
    """Thoughts of 5, 3 and 2 tokens at a quarter of the positions.

    Probabilities are mixed with a weight that begins at 0.12, so the cost of untrained thoughts is
    visible at once. About 5 minutes on 2 CPU cores for a checkpoint of 260k parameters.
    """
    c = small_hf.get_config()
    common.drop_rows(c)
    c.batch_size = 8
    c.optimizer.decay_steps = 0
    c.thought.mixing = "probability"
    c.thought.mixing_bias = -2.0
    c.thought.embedding_scale = 1.0
    c.thought.reinforce_temperature = 1.0
    c.thought.reset_marks_on_load = False
    c.thought.reset_talk_head_on_load = False
    c.thought.position_fraction = 0.25
    c.quiet_star.policy_weight = 1.0
    c.quiet_star.advantage = "leave_one_out"
    think: dict[str, Any] = {"objective": "quiet_star", "n_ahead_talk": 2, "learning_rate": 3e-4}
    c.stage_1 = row("think-8-2", n_ahead=8, steps=80, **think)
    c.stage_2 = row("think-6-2", start=1, n_ahead=6, steps=80, **think)
    c.stage_3 = row("think-5-2", start=2, n_ahead=5, steps=80, **think)
    c.stage_4 = row(
        "same-steps", "next_token", control=True, same_steps_as=(1, 2, 3), learning_rate=3e-4
    )
    return c
