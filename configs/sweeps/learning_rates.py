"""The learning rates of the tiny default: the student and plain training each get the best of several.

python -m fqs_jax.sweep --config=configs/sweeps/learning_rates.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import default
from fqs_jax.sweeps import variant

PLAIN = (1e-4, 3e-4, 1e-3, 3e-3)


def get_config() -> ml_collections.ConfigDict:
    """Thirty-six cells of 1 to 2 minutes on one CPU core each.

    The seeds are others than those of `configs/sweeps/default.py`, and rates are chosen on validation
    problems: nothing that is reported has a say in the choice.
    """
    c = default.get_config()
    c.seeds = (8, 9, 10)
    c.variants = (
        variant("distilled", stages="0,1,2", bracket=rates(2, 1e-3, 3e-3, 1e-2, 3e-2)),
        variant("same-steps", stages="0,4", bracket=rates(4, *PLAIN)),
        variant("same-flops", stages="0,5", bracket=rates(5, *PLAIN)),
    )
    c.show_once = (0,)
    return c


def rates(stage: int, *values: float) -> tuple[str, ...]:
    """A bracket: learning rates of one stage."""
    return tuple(f"stage_{stage}.learning_rate={value}" for value in values)
