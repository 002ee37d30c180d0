"""Is a student without thoughts better than plain training where most answers are wrong?

python -m fqs_jax.sweep --config=configs/sweeps/noisy_labels.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from configs.sweeps import default
from fqs_jax.sweep_cells import variant


def get_config() -> ml_collections.ConfigDict:
    """Five cells of about 5 minutes on one CPU core each."""
    c = default.get_config()
    c.config = "configs/noisy_labels.py"
    c.variants = (variant("noisy"),)
    return c
