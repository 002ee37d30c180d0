"""One thinking stage of the tiny model, with its controls; the sweeps vary this experiment.

python -m fqs_jax.launch --config=configs/think_once.py --workdir=W --stage=all
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import tiny
from fqs_jax.curriculum import row


def get_config() -> ml_collections.ConfigDict:
    """Clock arithmetic of three operations modulo 7; a fifth of the documents are answered at once.

    Thoughts have four tokens for three steps of work. About 2 minutes on 2 CPU cores.

    `--config.data.source=chain` selects look-ups in random tables instead of arithmetic.
    """
    c = tiny.without_rows()
    c.data.chain.lengths = (3,)
    c.stage_0 = row("base", "next_token", learning_rate=3e-3, steps=1000)
    c.stage_1 = row(
        "think", "quiet_star", start=0, n_ahead=7, n_ahead_talk=2, learning_rate=1e-3, steps=250
    )
    c.stage_2 = row(
        "same-steps", "next_token", start=0, control=True, same_steps_as=(1,), learning_rate=1e-3
    )
    c.stage_3 = row(
        "same-flops", "next_token", start=0, control=True, same_flops_as=(1,), learning_rate=1e-3
    )
    return c
