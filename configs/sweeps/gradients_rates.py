"""The learning rates of `gradients.py`, chosen on validation problems of a seed that it does not report.

python -m fqs_jax.sweep --config=configs/sweeps/gradients_rates.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.configs.sweeps import gradients
from fqs_jax.sweeps import variant

RATES = (3e-4, 1e-3, 3e-3)
# Rows whose best of these is at an edge have one more.
MORE = dict.fromkeys(("no-policy", "rlp", "rpt"), (1e-4,)) | {"published-form": (1e-2,)}


def get_config() -> ml_collections.ConfigDict:
    """Forty-six cells of 1 to 2 minutes on one CPU core each: 14 rows at three rates or four."""
    c = gradients.get_config()
    c.seeds = (5,)
    c.variants = tuple(
        variant(
            name,
            *changes,
            stages=f"0,{stage}",
            bracket=[
                f"stage_{stage}.learning_rate={rate}"
                for rate in sorted((*RATES, *MORE.get(name, ())))
            ],
        )
        for name, (stage, changes) in gradients.ROWS.items()
    )
    return c
