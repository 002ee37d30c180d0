"""Word problems in plain English: does a pretrained model of 135M parameters gain by thoughts?

python -m fqs_jax.sweep --config=configs/sweeps/word_problems.py --workdir=W --config.init_from=HF_DIR
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.smollm2_word_problems import ANSWERS
from fqs_jax.sweeps import variant


def get_config() -> ml_collections.ConfigDict:
    """Eighteen cells of SmolLM2-135M."""
    c = ml_collections.ConfigDict()
    c.config = "configs/smollm2_word_problems.py"
    c.init_from = ""  # the folder of SmolLM2-135M
    c.seeds = (0, 1, 2)
    no_policy = "quiet_star.policy_weight=0.0"
    c.variants = (
        variant("untrained", "stage_1.steps=1", "stage_1.learning_rate=1e-12", stages="0,1"),
        variant("default", stages="0,1,2"),
        # As settings of stage 1, which leave the base that of the other cells.
        variant("no-policy", f"stage_1.settings={(*ANSWERS, no_policy)}", stages="0,1"),
        variant("random-tokens", no_policy, "thought.tokens=random", stages="0,1"),
        variant("same-steps", stages="0,3"),
        variant("same-flops", stages="0,4"),
    )
    c.show_once = (0,)
    return c
