"""What makes thinking work on clock arithmetic: the tiny default beside the published forms.

python -m fqs_jax.sweep --config=configs/sweeps/thinking.py --workdir=W
"""

from __future__ import annotations

import ml_collections

from fqs_jax.sweep_cells import variant


def get_config() -> ml_collections.ConfigDict:
    """Ten cells of 1 to 4 minutes on 2 CPU cores."""
    c = ml_collections.ConfigDict()
    c.config = "configs/tiny.py"
    c.seeds = (0, 1, 2, 3, 4)
    c.overrides = ()  # of all cells
    c.variants = (
        variant("default"),
        variant(
            "published",
            "thought.mixing=linear",
            "quiet_star.advantage=clipped",
            stages="0,1",
        ),
    )
    c.show_once = (0,)  # the base is the same in both
    return c
