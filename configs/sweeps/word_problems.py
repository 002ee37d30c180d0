"""Word problems in plain English: does a pretrained model of 135M parameters gain by thoughts?

python -m fqs_jax.sweep --config=configs/sweeps/word_problems.py --workdir=W --config.init_from=HF_DIR
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.smollm2_word_problems import ANSWERS
from fqs_jax.configs.sweeps import learning_rates
from fqs_jax.sweeps import variant

RATES = (1e-4, 3e-4, 1e-3)


def get_config() -> ml_collections.ConfigDict:
    """Twenty-seven cells of SmolLM2-135M, of 20 to 50 minutes on one CPU core each.

    The plain controls read as many tokens as thinking and its student together, or cost as many FLOPs, each
    at the best of three learning rates. Problems of `new_wording` are told in sentences that no document has.
    """
    c = ml_collections.ConfigDict()
    c.config = "configs/smollm2_word_problems.py"
    c.init_from = ""  # the folder of SmolLM2-135M
    c.seeds = (0, 1, 2)
    no_policy = "quiet_star.policy_weight=0.0"
    c.variants = (
        variant("default", stages="0,1,2,3"),
        *(
            variant(name, stages=f"0,{stage}", bracket=learning_rates.rates(stage, *RATES))
            for name, stage in {"same-steps": 4, "same-flops": 5}.items()
        ),
        # As settings of stage 1, which leave the base that of the other cells.
        variant("no-policy", f"stage_1.settings={(*ANSWERS, no_policy)}", stages="0,1"),
        variant("random-tokens", no_policy, "thought.tokens=random", stages="0,1"),
    )
    c.show_once = (0,)
    return c
