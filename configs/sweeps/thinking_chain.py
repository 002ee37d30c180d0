"""Whether what works on the clock works on a second task: look-ups in random tables.

python -m fqs_jax.sweep --config=configs/sweeps/thinking_chain.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from configs.sweeps import policy, thinking


def get_config() -> ml_collections.ConfigDict:
    """Forty cells of 1 to 2 minutes on one CPU core each.

    All but two variants of `thinking.py`, and the policy weight that is better on its task.
    """
    c = thinking.get_config()
    c.overrides = ("data.source=chain",)
    left_out = ("clipped", "post-thought-loss")
    c.variants = (*(each for each in c.variants if each[0] not in left_out), policy.TEN)
    return c
