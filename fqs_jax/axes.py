"""The axes of every parameter, as letters: what sharding and checkpoint conversion read.

L layer, V vocabulary, D width, N query heads, G kv heads, H head size, F feed-forward; a dot is an
axis without a name.
"""

from __future__ import annotations

from typing import Any

import jax

PARAMETERS = {
    "lm/embed/embedding": "V D",
    "lm/layers/attn_norm/scale": "L D",
    "lm/layers/q/kernel": "L D N H",
    "lm/layers/q/bias": "L N H",
    "lm/layers/k/kernel": "L D G H",
    "lm/layers/k/bias": "L G H",
    "lm/layers/v/kernel": "L D G H",
    "lm/layers/v/bias": "L G H",
    "lm/layers/o/kernel": "L N H D",
    "lm/layers/mlp_norm/scale": "L D",
    "lm/layers/gate/kernel": "L D F",
    "lm/layers/up/kernel": "L D F",
    "lm/layers/down/kernel": "L F D",
    "lm/final_norm/scale": "D",
    "lm/head/kernel": "D V",
    "thought/start": "D",
    "thought/end": "D",
    "thought/pause": "D",
    "thought/talk_head/hidden_1/kernel": ". D",
    "thought/talk_head/hidden_1/bias": "D",
    "thought/talk_head/hidden_2/kernel": "D .",
    "thought/talk_head/hidden_2/bias": "D",
    "thought/talk_head/out/kernel": "D .",
}


def of_leaf(path: tuple[Any, ...]) -> tuple[str, ...] | None:
    """Axes of a leaf by its path in a tree of parameters or in an optimizer state, which holds such
    trees; None for one that is no parameter (a step count)."""
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    axes = PARAMETERS.get("/".join(map(str, names)))
    return None if axes is None else tuple(axes.split())
