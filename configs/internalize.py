"""Doing without thoughts: every way to teach a plain model, on a task where labels are scarce.

python -m fqs_jax.launch --config=configs/internalize.py --workdir=W --stage=all
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import tiny
from fqs_jax.curriculum import row


def get_config() -> ml_collections.ConfigDict:
    """A clock of 19 hours and two additions; half of the documents show the work, half are questions
    that nobody answers, and one in a hundred is answered at once.

    The base shows its work and cannot answer at once; after a thought it can. What a student learns
    from the thinking stage is what that expects after a question, answered or not. All students but
    one start from the base, read the same rows in the same order, and share one asking of the
    teacher. About 10 minutes on 2 CPU cores.
    """
    c = tiny.get_config()
    for name in [name for name in c if name.startswith("stage_")]:
        del c[name]
    c.data.clock.modulus = 19
    c.data.clock.operations = ("+1", "+2", "+3", "+4", "+5", "+6")
    c.data.clock.lengths = (2,)
    c.data.clock.worked = 0.98
    c.data.clock.direct = 0.02
    c.data.clock.chatter = 0.0
    c.data.seq_len = 12
    c.distill.teacher_thoughts = 1  # rows come again, each time with another thought
    c.checkpoint_every = 1000

    questions = ("data.clock.worked=0.0", "data.clock.unanswered=0.98")
    think: dict[str, Any] = {
        "objective": "quiet_star",
        "n_ahead_talk": 2,
        "learning_rate": 1e-3,
        "settings": questions,
    }
    taught: dict[str, Any] = {"teacher": 1, "rows_of": 2, "learning_rate": 3e-3, "steps": STEPS}
    student: dict[str, Any] = {"objective": "distill", "start": 0, "settings": questions, **taught}
    ntp: dict[str, Any] = {
        "objective": "ntp",
        "start": 0,
        "settings": questions,
        **taught,
        "learning_rate": 1e-4,
    }
    plain: dict[str, Any] = {
        "objective": "next_token",
        "learning_rate": 3e-3,
        "settings": questions,
    }
    c.stage_0 = row("base", "next_token", learning_rate=3e-3, steps=1500)
    c.stage_1 = row("think", start=0, n_ahead=5, steps=200, **think)
    c.stage_2 = row("forward-kl", **student | {"rows_of": None})
    c.stage_3 = row("forward-kl-from-think", **student | {"start": 1})
    c.stage_4 = row("reverse-kl", **student | {"settings": (*questions, "distill.form=reverse_kl")})
    c.stage_5 = row("policy", **student | {"settings": (*questions, "distill.form=policy")})
    c.stage_6 = row("hinge", **student | {"settings": (*questions, "distill.form=hinge")})
    c.stage_7 = row(
        "half-labels", **student | {"settings": (*questions, "distill.label_weight=0.5")}
    )
    c.stage_8 = row("shift", **student | {"settings": (*questions, "distill.weighting=shift")})
    c.stage_9 = row("ntp-released", **ntp)
    c.stage_10 = row("ntp-expected", **ntp | {"settings": (*questions, "ntp.action=expected")})
    c.stage_11 = row("ntp-label", **ntp | {"settings": (*questions, "ntp.action=label")})
    # Thoughts shortened to none, each stage with a fresh optimizer.
    c.stage_12 = row("think-4-2", start=1, n_ahead=4, steps=200, **think)
    c.stage_13 = row("shortened-to-none", start=12, steps=STEPS, **plain)
    # Controls: as many tokens; at least as many FLOPs as thinking, asking the teacher and being taught.
    c.stage_14 = row("same-steps", start=0, control=True, same_steps_as=(1, 2), **plain)
    c.stage_15 = row("same-flops", start=0, control=True, steps=4 * STEPS, **plain)
    return c


STEPS = 2000
