"""Does the comparison of a student with its controls depend on the learning rate, where answers are scarce?

python -m fqs_jax.sweep --config=configs/sweeps/scarce_rates.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import default
from fqs_jax.sweeps import variant


def get_config() -> ml_collections.ConfigDict:
    """Twenty-five cells of up to 5 minutes on one CPU core each.

    The stages of the tiny default on the text of `configs/internalize.py`, in which one document in fifty
    is answered at once, in the base's text too, and every problem in some of them. "between" has the
    rates of that config.
    """
    c = default.get_config()
    c.seeds = (0, 1, 2, 3, 4)
    c.overrides = (
        "data.clock.worked=0.98",
        "data.clock.direct=0.02",
        "data.clock.answered_share=1.0",
    )
    c.variants = (
        variant("lower", *rates(student=1e-3)),
        variant("higher", *rates(student=1e-2, ntp=1e-5)),
        variant("lowest", *rates(student=3e-4), stages="0,4,5"),
        variant("between", *rates(student=3e-3, ntp=1e-4)),
        variant("highest", *rates(student=3e-2), stages="0,1,2,4,5"),
    )
    c.show_once = (0, 1)
    return c


def rates(student: float, ntp: float = 1e-6) -> tuple[str, ...]:
    """Overrides: `student` for the student and both plain controls, `ntp` for NTP (published: 1e-6)."""
    return (
        *(f"stage_{number}.learning_rate={student}" for number in (2, 4, 5)),
        f"stage_3.learning_rate={ntp}",
    )
