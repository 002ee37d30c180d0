"""Thoughts made shorter stage by stage, down to none, beside training at the short length at once.

python -m fqs_jax.launch --config=configs/shorten.py --workdir=W --stage=all
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import tiny
from fqs_jax.curriculum import row


def get_config() -> ml_collections.ConfigDict:
    """Stages 1 to 3 are the tiny default's. About 8 minutes on 2 CPU cores.

    direct-6-2 thinks as shortly from its first step, with as many steps as stages 1 to 3 together, or
    with as many FLOPs. Stages 6 to 8 go on from stage 3 to thoughts of two tokens, of one, and of
    none; each begins with a fresh optimizer. Thoughts are cut at their end, since that is where a
    shorter one stops.
    """
    c = tiny.get_config()
    for name in [name for name in c if name.startswith("stage_")]:
        if int(name.removeprefix("stage_")) > 3:
            del c[name]
    think: dict[str, Any] = {"objective": "quiet_star", "n_ahead_talk": 2, "learning_rate": 1e-3}
    plain: dict[str, Any] = {"objective": "next_token", "learning_rate": 1e-3}
    c.stage_4 = row(
        "direct-6-2", start=0, n_ahead=6, control=True, same_steps_as=(1, 2, 3), **think
    )
    c.stage_5 = row(
        "direct-6-2-flops", start=0, n_ahead=6, control=True, same_flops_as=(1, 2, 3), **think
    )
    c.stage_6 = row("think-5-2", start=3, n_ahead=5, steps=150, **think)
    c.stage_7 = row("think-4-2", start=6, n_ahead=4, steps=150, **think)
    c.stage_8 = row("no-thoughts", start=7, steps=550, **plain)
    c.stage_9 = row("plain", start=0, control=True, same_steps_as=(1, 2, 3, 6, 7, 8), **plain)
    return c
