"""What should a thought consist of, and which gradient should train it? Rivals on word problems.

python -m fqs_jax.sweep --config=configs/sweeps/gradients_stories.py --workdir=W
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from fqs_jax.configs.sweeps import gradients

# After the base every document is a question with its answer, and only the answer is predicted.
ANSWERED = (
    "data.stories.worked=0.0",
    "data.stories.direct=1.0",
    "data.stories.chatter=0.0",
    "data.learn=answers",
)
# The base's text shows its work, and rarely answers at once.
STORIES = (
    "data.source=stories",
    "data.stories.lengths=(3,)",
    "data.stories.largest=10",
    "data.stories.work=values",
    "data.stories.worked=0.88",
    "data.stories.direct=0.02",
    "data.stories.validation_share=0.05",
    "data.stories.test_share=0.05",
    "data.seq_len=44",  # the longest document
    "thought.position_fraction=0.02",  # one position: where the answer begins
    "stage_1.n_ahead_talk=1",  # the answer is one token
    # The policy loss is a mean over all positions, of which one in 42 has a reward. With this weight the two
    # terms of "jepo" are the gradient of one bound (docs/fidelity.md).
    "quiet_star.policy_weight=84.0",
    "stage_0.steps=2000",
    *(f"stage_{stage}.settings={ANSWERED}" for stage in (1, 2, 3)),
)
# Chosen by gradients_stories_rates.py; all others have 1e-3, the rate of configs/think_once.py.
CHOSEN: Mapping[str, float] = {}


def get_config() -> ml_collections.ConfigDict:
    """Sixty cells of 1 to 3 minutes on one CPU core each.

    Stories of three changes, told in words, to the tiny model. Each question is answered and each row has
    one thought, in front of the answer: 32 rewarded questions a step, where the rows of `gradients.py` and
    `gradients_chain.py` have six or seven. Seed 0 is left out, because the text was chosen on it.
    """
    c = gradients.get_config()
    c.seeds = (1, 2, 3, 4, 6)
    c.overrides = STORIES
    c.variants = (*(gradients.row(name, CHOSEN) for name in gradients.ROWS), gradients.UNTRAINED)
    return c
