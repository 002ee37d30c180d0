"""The learning rates of the word problems: the student and plain training each get the best of several.

python -m fqs_jax.sweep --config=configs/sweeps/word_problems_rates.py --workdir=W --config.init_from=HF_DIR
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import learning_rates, word_problems
from fqs_jax.sweeps import variant

RATES = (1e-4, 3e-4, 1e-3)


def get_config() -> ml_collections.ConfigDict:
    """Nine cells of SmolLM2-135M, with rates chosen on validation problems."""
    c = word_problems.get_config()
    c.seeds = (3,)
    c.variants = (
        variant("distilled", stages="0,1,2", bracket=learning_rates.rates(2, *RATES)),
        variant("same-steps", stages="0,3", bracket=learning_rates.rates(3, *RATES)),
        variant("same-flops", stages="0,4", bracket=learning_rates.rates(4, *RATES)),
    )
    c.show_once = (0,)
    return c
