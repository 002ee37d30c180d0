"""Learning rates of `gradients_chain.py`, chosen on validation problems of a seed that it does not report.

python -m fqs_jax.sweep --config=configs/sweeps/gradients_chain_rates.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import gradients, gradients_chain, gradients_rates

MORE = gradients_rates.MORE | {"jepo": (1e-2,)}


def get_config() -> ml_collections.ConfigDict:
    """Twenty-five cells of 1 to 2 minutes on one CPU core each: 6 rows at three to five rates."""
    c = gradients_chain.get_config()
    c.seeds = (5,)
    c.variants = tuple(
        gradients_rates.bracketed(name, gradients.ROWS[name], MORE)
        for name in gradients_chain.RIVALS
    )
    return c
