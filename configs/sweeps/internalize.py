"""Can a model do without its thoughts? Ways to teach a plain student, beside every control.

python -m fqs_jax.sweep --config=configs/sweeps/internalize.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.sweep_cells import variant


def get_config() -> ml_collections.ConfigDict:
    """Five cells of about 8 minutes on one CPU core each, and five of 2.

    In the second variant half of the few answers are wrong, too.
    """
    c = ml_collections.ConfigDict()
    c.config = "configs/internalize.py"
    c.seeds = (0, 1, 2, 3, 4)
    c.variants = (
        variant("scarce"),
        variant("scarce-and-noisy", "data.clock.label_noise=0.5", stages="0,1,2,14"),
    )
    return c
