"""Whether what works on the clock works on a second task: look-ups in random tables.

python -m fqs_jax.sweep --config=configs/sweeps/thinking_chain.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from configs.sweeps import thinking
from configs.sweeps.thinking import NO_POLICY, PUBLISHED
from fqs_jax.sweep_cells import variant


def get_config() -> ml_collections.ConfigDict:
    """Fifteen cells of about a minute on one CPU core each."""
    c = thinking.get_config()
    c.overrides = ("data.source=chain",)
    c.variants = (
        variant("default", stages="0,1,2"),
        variant("published-form", *PUBLISHED, stages="0,1"),
        variant("no-policy", NO_POLICY, stages="0,1"),
    )
    return c
