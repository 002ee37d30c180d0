"""Word problems in plain English: does a pretrained model of 135M parameters gain by thoughts?

python -m fqs_jax.sweep --config=configs/sweeps/word_problems.py --workdir=W --config.init_from=HF_DIR
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.smollm2_word_problems import ANSWERS
from fqs_jax.configs.sweeps import gradients
from fqs_jax.sweeps import variant


def get_config() -> ml_collections.ConfigDict:
    """15 cells of SmolLM2-135M, of 15 to 75 minutes on one CPU core each.

    Plain training costs as many FLOPs as thinking and its student together, and so reads more tokens; one row
    reads worked problems beside the few answers, the other the answers alone. Problems of `new_wording` are
    told in sentences that no document has.
    """
    c = ml_collections.ConfigDict()
    c.config = "configs/smollm2_word_problems.py"
    c.init_from = ""  # the folder of SmolLM2-135M
    c.seeds = (0, 1, 2)
    c.variants = (
        gradients.UNTRAINED,
        variant("default", stages="0,1,2"),
        variant(
            "random-tokens",
            "quiet_star.policy_weight=0.0",
            "thought.tokens=random",
            stages="0,1",
        ),
        variant("plain", stages="0,4"),
        variant("answers-alone", f"stage_4.settings={ANSWERS}", stages="0,4"),
    )
    c.show_once = (0,)
    return c
