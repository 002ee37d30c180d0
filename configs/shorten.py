"""Thoughts shortened stage by stage, down to none, compared with training at the short length at once.

python -m fqs_jax.launch --config=configs/shorten.py --workdir=W --stage=all
"""

from __future__ import annotations

from typing import Any

import ml_collections

from fqs_jax.configs import tiny
from fqs_jax.curriculum import row


def get_config() -> ml_collections.ConfigDict:
    """Clock arithmetic of three operations modulo 7. About 8 minutes on 2 CPU cores.

    direct-6-2 has the short thoughts of stage 3 from its first step, with as many steps as stages 1 to 3
    together; direct-6-2-flops has as many FLOPs. Stages 6 to 8 continue from stage 3 with thoughts of
    two tokens, of one, and of none; each begins with a fresh optimizer. Shortening removes tokens at
    the end of a thought.
    """
    c = tiny.without_rows()
    think: dict[str, Any] = {"objective": "quiet_star", "n_ahead_talk": 2, "learning_rate": 1e-3}
    plain: dict[str, Any] = {"objective": "next_token", "learning_rate": 1e-3}
    # Thoughts of 5, 4 and 3 tokens; the work of these problems is three tokens long.
    c.stage_0 = row("base", "next_token", learning_rate=3e-3, steps=1000)
    c.stage_1 = row("think-8-2", start=0, n_ahead=8, steps=250, **think)
    c.stage_2 = row("think-7-2", start=1, n_ahead=7, steps=150, **think)
    c.stage_3 = row("think-6-2", start=2, n_ahead=6, steps=150, **think)
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
