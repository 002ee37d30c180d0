"""What should a thought consist of, and which gradient should train it? Rivals on clock arithmetic.

python -m fqs_jax.sweep --config=configs/sweeps/gradients.py --workdir=W
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from fqs_jax.configs.sweeps import learning_rates, thinking
from fqs_jax.sweeps import variant
from fqs_jax.sweeps.variants import Variant

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
# Each row: its stage of configs/think_once.py, and its changes.
ROWS = {
    **{name: (1, changes) for name, changes in RIVALS.items()},
    **{name: (stage, ()) for name, stage in CONTROLS.items()},
}
# Chosen by gradients_rates.py. All others have 1e-3, the rate of configs/think_once.py: it is the best there,
# or the row is within two standard errors of a guess at every rate.
CHOSEN = {
    "no-policy": 3e-4,
    "rlp": 1e-4,
    "rpt": 3e-5,
    "published-form": 3e-3,
}
# Thoughts as they begin, from the symbols around shown work: one step that moves nothing.
UNTRAINED = variant("untrained", "stage_1.steps=1", "stage_1.learning_rate=1e-12", stages="0,1")


def get_config() -> ml_collections.ConfigDict:
    """Sixty cells of 1 to 2 minutes on one CPU core each.

    Each row that answers better than a guess has the best of three to five learning rates, chosen on
    validation problems of another seed.
    docs/fidelity.md has the formulas, and what differs from the papers. "rlp" is "default" without the
    likelihood terms, "rpt" is "rlp" with another reward, and "jepo" is "default" with the multi-sample
    bound. With four tokens and two talk steps the policy weight of 1 is the one at which the two terms of
    "jepo" are the gradient of one bound.
    """
    c = thinking.get_config()
    c.variants = (*(row(name, CHOSEN) for name in ROWS), UNTRAINED)
    return c


def row(name: str, chosen: Mapping[str, float]) -> Variant:
    """A row of the comparison, with its chosen learning rate if that is not the experiment's."""
    stage, changes = ROWS[name]
    rate = learning_rates.rates(stage, chosen[name]) if name in chosen else ()
    return variant(name, *changes, *rate, stages=f"0,{stage}")
