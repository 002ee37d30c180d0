"""Doing without thoughts where the answers in the text are mostly wrong.

python -m fqs_jax.launch --config=configs/noisy_labels.py --workdir=W --stage=all
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs import tiny

# One question in ten is answered at once, four in five of those at random; one in ten is worked out.
NOISY = (
    "data.clock.worked=0.1",
    "data.clock.direct=0.1",
    "data.clock.unanswered=0.8",
    "data.clock.label_noise=0.8",
)


def get_config() -> ml_collections.ConfigDict:
    """The stages of the tiny default on the base of `configs/internalize.py`, with another text after it.

    The rates are 3e-3 for the student and plain training, and 1e-4 for NTP. The student does better at
    1e-2 and plain training at 3e-4; `configs/sweeps/noisy_labels.py` compares them. The text has a
    fifth more right answers than that of `internalize`, one document in 41, among three times as many
    wrong ones. Work that is shown is right. About 5 minutes on 2 CPU cores.
    """
    c = tiny.get_config()
    tiny.scarce_answers(c)
    c.data.clock.answered_share = 1.0  # every problem has an answer, mostly a wrong one
    for number in range(1, 6):
        c[f"stage_{number}"].settings = NOISY
    for number, rate in ((2, 3e-3), (3, 1e-4), (4, 3e-3), (5, 3e-3)):
        c[f"stage_{number}"].learning_rate = rate
    return c
