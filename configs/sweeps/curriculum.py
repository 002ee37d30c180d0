"""Does the curriculum beat training at the short length at once?

python -m fqs_jax.sweep --config=configs/sweeps/curriculum.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.sweeps import variant


def get_config() -> ml_collections.ConfigDict:
    """Five cells of about 5 minutes on one CPU core each."""
    c = ml_collections.ConfigDict()
    c.config = "configs/shorten.py"
    c.seeds = (0, 1, 2, 3, 4)
    c.variants = (variant("shorten", stages="0,1,2,3,4,5"),)
    return c
