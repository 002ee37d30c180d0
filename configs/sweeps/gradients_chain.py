"""What should a thought consist of, and which gradient should train it? Rivals on look-ups in random tables.

python -m fqs_jax.sweep --config=configs/sweeps/gradients_chain.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import gradients


def get_config() -> ml_collections.ConfigDict:
    """Sixty cells of 1 to 2 minutes on one CPU core each, at the learning rates of `gradients.py`."""
    c = gradients.get_config()
    c.overrides = ("data.source=chain",)
    return c
