"""Ablations of thinking on clock arithmetic: each choice alone, with every control.

python -m fqs_jax.sweep --config=configs/sweeps/thinking.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.sweeps import variant

PUBLISHED = ("thought.mixing=linear", "quiet_star.advantage=clipped")
NO_POLICY = "quiet_star.policy_weight=0.0"


def get_config() -> ml_collections.ConfigDict:
    """Forty-five cells of 1 to 2 minutes on one CPU core each.

    The first variant has the settings of the tiny default; the others differ only in their overrides.
    """
    c = ml_collections.ConfigDict()
    c.config = "configs/think_once.py"
    c.seeds = (0, 1, 2, 3, 4)
    c.variants = (
        variant("default"),
        variant("published-form", *PUBLISHED, stages="0,1"),
        variant("no-policy", NO_POLICY, stages="0,1"),
        variant("random-tokens", NO_POLICY, "thought.tokens=random", stages="0,1"),
        variant("pause-tokens", NO_POLICY, "thought.tokens=pause", stages="0,1"),
        variant("sigmoid-mixing", "thought.mixing=sigmoid", stages="0,1"),
        variant("clipped", "quiet_star.advantage=clipped", stages="0,1"),
        variant("post-thought-reward", "quiet_star.reward=post_thought", stages="0,1"),
        variant("post-thought-loss", "quiet_star.post_thought_weight=0.25", stages="0,1"),
    )
    c.show_once = (0,)  # the base is the same in all
    return c
