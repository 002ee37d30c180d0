"""Rival gradients of the same thoughts: which of them teaches a model to think?

python -m fqs_jax.sweep --config=configs/sweeps/gradients.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from configs.sweeps import thinking
from fqs_jax.sweeps import variant

# No likelihood has a gradient: thoughts learn by their rewards alone.
POLICY_ONLY = ("quiet_star.base_weight=0.0", "quiet_star.mixed_scale=0.0")


def get_config() -> ml_collections.ConfigDict:
    """Thirty cells of 1 to 3 minutes on one CPU core each.

    docs/fidelity.md has the formulas, and what differs from the papers. "rlp" is "default" without the
    likelihood terms, "rpt" is "rlp" with another reward, and "jepo" is "default" with the
    multi-sample bound. With four tokens and two talk steps, the policy weight of 1 makes the two terms
    of "jepo" the gradient of one bound, but for padding. In "rlp" and "rpt" nothing trains the talk
    head: the weight of a thought stays at 0.12.
    """
    c = thinking.get_config()
    c.variants = (
        variant("default", stages="0,1"),
        variant("no-policy", thinking.NO_POLICY, stages="0,1"),
        variant("rlp", *POLICY_ONLY, stages="0,1"),
        variant(
            "jepo",
            "quiet_star.likelihood=average",
            "quiet_star.advantage=bound",
            stages="0,1",
        ),
        variant("rpt", *POLICY_ONLY, "quiet_star.reward=correct", stages="0,1"),
        variant("published-form", *thinking.PUBLISHED, stages="0,1"),
    )
    return c
