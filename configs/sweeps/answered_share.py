"""How few problems may be answered before a student of thoughts is better than plain training?

python -m fqs_jax.sweep --config=configs/sweeps/answered_share.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import default
from fqs_jax.sweeps import variant

SHARES = (0.3, 1.0)  # of the training problems; the default has 0.1


def get_config() -> ml_collections.ConfigDict:
    """Nine cells of up to 3 minutes on one CPU core each.

    The learning rates are those of the default. Where all problems are answered, plain training has a
    higher one too.
    """
    c = default.get_config()
    c.seeds = (0, 1, 2)
    c.variants = (
        *(
            variant(f"share-{share}", f"data.clock.answered_share={share}", stages="0,1,2,5")
            for share in SHARES
        ),
        variant(
            "share-1.0-at-1e-3",
            "data.clock.answered_share=1.0",
            "stage_5.learning_rate=1e-3",
            stages="0,5",
        ),
    )
    c.show_once = (0,)
    return c
