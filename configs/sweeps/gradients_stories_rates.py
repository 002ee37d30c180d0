"""Learning rates of `gradients_stories.py`, chosen on validation problems of a seed that it does not report.

python -m fqs_jax.sweep --config=configs/sweeps/gradients_stories_rates.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import gradients, gradients_rates, gradients_stories


def get_config() -> ml_collections.ConfigDict:
    """Thirty-seven cells of 1 to 3 minutes on one CPU core each: 11 rows at three to five rates."""
    c = gradients_stories.get_config()
    c.seeds = (5,)
    more = dict.fromkeys(("rlp", "rpt"), gradients_rates.LOWER)
    c.variants = tuple(
        gradients_rates.bracketed(name, row, more) for name, row in gradients.ROWS.items()
    )
    return c
