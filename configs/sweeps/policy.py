"""The policy loss of thinking: its weight, and the number of thoughts per position.

python -m fqs_jax.sweep --config=configs/sweeps/policy.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import thinking
from fqs_jax.sweeps import variant

TEN = variant("policy-weight-10", "quiet_star.policy_weight=10.0", stages="0,1")


def get_config() -> ml_collections.ConfigDict:
    """Twenty cells of 1 to 3 minutes on one CPU core each.

    The published weight is 1e6. "four-thoughts" compares each thought with the mean of three others,
    the default with one other. It costs nearly twice as much.
    """
    c = thinking.get_config()
    c.variants = (
        variant("default", stages="0,1"),
        TEN,
        variant("policy-weight-1e6", "quiet_star.policy_weight=1e6", stages="0,1"),
        variant("four-thoughts", "thought.rationales=4", stages="0,1"),
    )
    return c
