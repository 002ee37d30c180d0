"""What should a thought consist of, and which gradient should train it? Rivals on clock arithmetic.

python -m fqs_jax.sweep --config=configs/sweeps/gradients.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from configs.sweeps import thinking
from fqs_jax.sweeps import variant

RATES = (3e-4, 1e-3, 3e-3)
# No likelihood has a gradient: thoughts learn by their rewards alone.
POLICY_ONLY = ("quiet_star.base_weight=0.0", "quiet_star.mixed_scale=0.0")
BOUND = ("quiet_star.likelihood=average", "quiet_star.advantage=bound")
RIVALS = {
    "default": (),
    "no-policy": (thinking.NO_POLICY,),
    "rlp": POLICY_ONLY,
    "rpt": (*POLICY_ONLY, "quiet_star.reward=correct"),
    "jepo": BOUND,
    "published-form": thinking.PUBLISHED,
    "latent": ("thought.tokens=latent", "thought.rationales=1", thinking.NO_POLICY),
    "random-tokens": ("thought.tokens=random", thinking.NO_POLICY),
    "pause-tokens": ("thought.tokens=pause", thinking.NO_POLICY),
}
CONTROLS = {"same-steps": 2, "same-flops": 3}  # stages of configs/think_once.py


def get_config() -> ml_collections.ConfigDict:
    """165 cells of 1 to 2 minutes on one CPU core each.

    Each row has the best of three learning rates, chosen on validation problems. docs/fidelity.md has
    the formulas, and what differs from the papers. "rlp" is "default" without the likelihood terms, "rpt"
    is "rlp" with another reward, and "jepo" is "default" with the multi-sample bound. With four tokens
    and two talk steps the policy weight of 1 is the one at which the two terms of "jepo" are the gradient
    of one bound.
    """
    c = thinking.get_config()
    c.variants = (
        *(
            variant(name, *changes, stages="0,1", bracket=rates(1))
            for name, changes in RIVALS.items()
        ),
        *(
            variant(name, stages=f"0,{stage}", bracket=rates(stage))
            for name, stage in CONTROLS.items()
        ),
    )
    return c


def rates(stage: int) -> tuple[str, ...]:
    """A bracket: each of RATES for one stage."""
    return tuple(f"stage_{stage}.learning_rate={rate}" for rate in RATES)
