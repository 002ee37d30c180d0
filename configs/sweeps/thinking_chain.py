"""Do the findings on the clock hold on a second task, look-ups in random tables?

python -m fqs_jax.sweep --config=configs/sweeps/thinking_chain.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import policy, thinking


def get_config() -> ml_collections.ConfigDict:
    """Forty cells of 1 to 2 minutes on one CPU core each.

    The variants are those of `thinking.py` except two, and the policy weight that is better there.
    """
    c = thinking.get_config()
    c.overrides = ("data.source=chain",)
    left_out = ("clipped", "post-thought-loss")
    c.variants = (*(each for each in c.variants if each[0] not in left_out), policy.TEN)
    return c
