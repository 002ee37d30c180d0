"""The tiny default over eight seeds; `make demo` trains one of them.

python -m fqs_jax.sweep --config=configs/sweeps/default.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import gradients
from fqs_jax.sweeps import variant


def get_config() -> ml_collections.ConfigDict:
    """16 cells of 1 to 3 minutes on one CPU core each."""
    c = ml_collections.ConfigDict()
    c.config = "configs/tiny.py"
    c.seeds = tuple(range(8))
    c.variants = (gradients.UNTRAINED, variant("default"))
    c.show_once = (0,)
    return c
