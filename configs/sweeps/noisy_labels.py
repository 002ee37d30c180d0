"""Is a student without thoughts better than plain training where most answers are wrong?

python -m fqs_jax.sweep --config=configs/sweeps/noisy_labels.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps.scarce_rates import rates
from fqs_jax.sweeps import variant


def get_config() -> ml_collections.ConfigDict:
    """Thirty cells of up to 5 minutes on one CPU core each, at learning rates of 1e-4 to 3e-2."""
    c = ml_collections.ConfigDict()
    c.config = "configs/noisy_labels.py"
    c.seeds = (0, 1, 2, 3, 4)
    c.variants = (
        variant("noisy"),
        variant("noisy-lower", *rates(student=1e-3)),
        variant("noisy-3e-4", *rates(student=3e-4), stages="0,4,5"),
        variant("noisy-higher", *rates(student=1e-2), stages="0,1,2,4,5"),
        variant("noisy-1e-4", *rates(student=1e-4), stages="0,4,5"),
        variant("noisy-3e-2", *rates(student=3e-2), stages="0,1,2"),
    )
    c.show_once = (0, 1)
    return c
