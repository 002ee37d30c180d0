"""How few problems may be answered before a student of thoughts is better than plain training?

python -m fqs_jax.sweep --config=configs/sweeps/answered_share.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import default
from fqs_jax.sweeps import variant

SHARES = (0.1, 0.3, 1.0)  # of the training problems; 0.1 is the default


def get_config() -> ml_collections.ConfigDict:
    """Nine cells of about 3 minutes on one CPU core each, at the learning rates of the default."""
    c = default.get_config()
    c.seeds = (0, 1, 2)
    c.variants = tuple(
        variant(f"share-{share}", f"data.clock.answered_share={share}", stages="0,1,2,5")
        for share in SHARES
    )
    return c
