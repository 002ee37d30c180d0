"""The learning rates of `gradients.py`, chosen on validation problems of a seed that it does not report.

python -m fqs_jax.sweep --config=configs/sweeps/gradients_rates.py --workdir=W
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from fqs_jax.configs.sweeps import gradients, learning_rates
from fqs_jax.sweeps import variant
from fqs_jax.sweeps.variants import Variant

RATES = (3e-4, 1e-3, 3e-3)
# Thoughts weigh 0.5 from the start, not 0.12: without a likelihood the weight is not trained.
HALF = ("thought.mixing_bias=0.0",)
AT_HALF = {f"{n}-half": (1, (*gradients.RIVALS[n], *HALF)) for n in ("default", "rlp", "rpt")}
# Rows whose best of these is at an edge, and above chance, have more.
LOWER = (3e-5, 1e-4)
MORE = {
    "published-form": (1e-2,),
    **dict.fromkeys(("no-policy", "default-half"), (1e-4,)),
    **dict.fromkeys(("rlp", "rpt", "rlp-half", "rpt-half"), LOWER),
}


def get_config() -> ml_collections.ConfigDict:
    """Fifty-three cells of 1 to 2 minutes on one CPU core each: 14 rows at three to five rates."""
    c = gradients.get_config()
    c.seeds = (5,)
    c.variants = tuple(
        bracketed(name, row, MORE) for name, row in (gradients.ROWS | AT_HALF).items()
    )
    return c


def bracketed(
    name: str, row: tuple[int, tuple[str, ...]], more: Mapping[str, tuple[float, ...]]
) -> Variant:
    """A row of the comparison, its stage and changes, at RATES and at more of its own."""
    stage, changes = row
    rates = sorted((*RATES, *more.get(name, ())))
    bracket = learning_rates.rates(stage, *rates)
    return variant(name, *changes, stages=f"0,{stage}", bracket=bracket)
