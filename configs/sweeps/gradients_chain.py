"""What should a thought consist of, and which gradient should train it? Rivals on look-ups in random tables.

python -m fqs_jax.sweep --config=configs/sweeps/gradients_chain.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import gradients

# `thinking_chain.py` has the controls: random tokens, pauses, plain training. Latent thoughts were not tried.
RIVALS = ("default", "no-policy", "rlp", "rpt", "jepo", "published-form")
# Chosen by gradients_chain_rates.py; all others have 1e-3, the rate of configs/think_once.py.
CHOSEN = {"rlp": 3e-4, "rpt": 3e-5, "jepo": 3e-3, "published-form": 3e-3}


def get_config() -> ml_collections.ConfigDict:
    """Thirty-five cells of 1 to 2 minutes on one CPU core each.

    The rows of `gradients.py` that are no controls, each at its own learning rate, chosen by
    `gradients_chain_rates.py`.
    """
    c = gradients.get_config()
    c.overrides = ("data.source=chain",)
    c.variants = (*(gradients.row(name, CHOSEN) for name in RIVALS), gradients.UNTRAINED)
    return c
