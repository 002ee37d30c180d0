"""May a student learn behind the question alone? The tiny default, its student on questions without answers.

python -m fqs_jax.sweep --config=configs/sweeps/distill_positions.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.sweeps import variant

QUESTIONS = ("data.clock.worked=0.0", "data.clock.direct=0.0", "data.clock.unanswered=1.0")


def get_config() -> ml_collections.ConfigDict:
    """Nine cells of about 2 minutes on one CPU core each.

    The first variant is the default's text, of which one document in ten is worked out.
    """
    c = ml_collections.ConfigDict()
    c.config = "configs/tiny.py"
    c.seeds = (0, 1, 2)
    text = f"stage_2.settings={QUESTIONS}"
    last = f"stage_2.settings={(*QUESTIONS, 'distill.positions=last')}"
    c.variants = (
        variant("default", stages="0,1,2"),
        variant("all", text, stages="0,1,2"),
        variant("last", last, stages="0,1,2"),
    )
    c.show_once = (0, 1)
    return c
