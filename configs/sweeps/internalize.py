"""Can a model do without its thoughts? Ways to train a plain student, with every control.

python -m fqs_jax.sweep --config=configs/sweeps/internalize.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.sweeps import variant


def get_config() -> ml_collections.ConfigDict:
    """Five cells of about 8 minutes on one CPU core each."""
    c = ml_collections.ConfigDict()
    c.config = "configs/internalize.py"
    c.seeds = (0, 1, 2, 3, 4)
    c.variants = (variant("scarce"),)
    return c
