"""Learning rates of the word problems, chosen on validation problems, which are not reported.

python -m fqs_jax.sweep --config=configs/sweeps/word_problems_rates.py --workdir=W --config.init_from=HF_DIR
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import learning_rates, word_problems
from fqs_jax.sweeps import variant

RATES = (1e-4, 3e-4, 1e-3)


def get_config() -> ml_collections.ConfigDict:
    """Six cells of SmolLM2-135M, of 40 to 75 minutes on one CPU core each: the student and plain training."""
    c = word_problems.get_config()
    c.seeds = (0,)
    c.variants = (
        variant("distilled", stages="0,1,2", bracket=learning_rates.rates(2, *RATES)),
        variant("same-flops", stages="0,4", bracket=learning_rates.rates(4, *RATES)),
    )
    return c
