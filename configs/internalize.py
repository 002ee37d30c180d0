"""Doing without thoughts: every way to train a plain model from a thinking one, where answers are scarce.

python -m fqs_jax.launch --config=configs/internalize.py --workdir=W --stage=all
"""

from __future__ import annotations

from typing import Any

import ml_collections

from fqs_jax.configs import tiny
from fqs_jax.configs.tiny import QUESTIONS
from fqs_jax.curriculum import row

STEPS = 2000  # per student


def get_config() -> ml_collections.ConfigDict:
    """A clock of 19 hours and two additions; 684 problems, 137 of them held out.

    The base learns from worked problems, and from one in fifty that is answered at once: it cannot
    answer at once itself. The later stages read questions; nine in ten have no answer. After a thought
    the model can answer them. All students read the same rows in the same order, and share the
    teacher's scores, which are computed once. About 10 minutes on 2 CPU cores.
    """
    c = tiny.without_rows()
    tiny.scarce_answers(c)
    think: dict[str, Any] = {"n_ahead_talk": 2, "learning_rate": 1e-3, "settings": QUESTIONS}
    taught: dict[str, Any] = {"start": 0, "teacher": 1, "rows_of": 2, "steps": STEPS}

    def student(name: str, *settings: str, **changes: Any) -> ml_collections.ConfigDict:
        fields = taught | {"learning_rate": 3e-3, "settings": QUESTIONS + settings} | changes
        return row(name, "distill", **fields)

    def released(name: str, *settings: str) -> ml_collections.ConfigDict:
        fields = taught | {"learning_rate": 1e-4, "settings": QUESTIONS + settings}
        return row(name, "ntp", **fields)

    def plain(name: str, **fields: Any) -> ml_collections.ConfigDict:
        return row(name, "next_token", learning_rate=3e-3, settings=QUESTIONS, **fields)

    c.stage_0 = row("base", "next_token", learning_rate=3e-3, steps=1500)
    c.stage_1 = row("think", "quiet_star", start=0, n_ahead=5, steps=200, **think)
    c.stage_2 = student("distill", rows_of=None)
    c.stage_3 = student("distill-from-think", start=1)
    c.stage_4 = student("distill-everywhere", "distill.weighting=all")
    c.stage_5 = student("reverse-kl", "distill.form=reverse_kl")
    c.stage_6 = student("policy", "distill.form=policy")
    c.stage_7 = student("hinge", "distill.form=hinge")
    c.stage_8 = student("half-labels", "distill.label_weight=0.5")
    c.stage_9 = released("ntp-sampled")
    c.stage_10 = released("ntp-expected", "ntp.action=expected")
    c.stage_11 = released("ntp-label", "ntp.action=label")
    # Thoughts shortened to none, each stage with a fresh optimizer.
    c.stage_12 = row("think-4-2", "quiet_star", start=1, n_ahead=4, steps=200, **think)
    c.stage_13 = plain("shortened-to-none", start=12, steps=STEPS)
    # Controls: as many tokens; at least as many FLOPs as thinking, teacher scoring and distillation.
    c.stage_14 = plain("same-steps", start=0, control=True, same_steps_as=(1, 2))
    c.stage_15 = plain("same-flops", start=0, control=True, steps=4 * STEPS)
    return c
