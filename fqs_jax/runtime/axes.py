"""Checks of array shapes against the axes in the arrays' names.

`hidden_BxTxD` has the axes B, T and D. A trailing x, as in `states_BxTx`, stands for any more axes.
"""

from __future__ import annotations

import itertools
from typing import Any

import chex


def check_axes(**values: Any) -> None:
    """Refuse arrays whose shapes disagree with their names, or with each other on the size of an axis.

    Shapes are known while a function is traced, so the check costs nothing when it runs.

    Args:
      values: arrays by their names, None is skipped; and sizes of single axes, such as `D=12`.

    Raises:
      AssertionError: names the array, its shape and the expected one.
    """
    sizes: Any = chex.Dimensions(**{n: v for n, v in values.items() if isinstance(v, int)})
    arrays = {n: v for n, v in values.items() if v is not None and not isinstance(v, int)}
    for name, array in arrays.items():
        *axes, last = name.rpartition("_")[2].split("x")
        more = () if last else (...,)
        axes = [*axes, last] if last else axes
        for axis, size in itertools.zip_longest(axes, array.shape[: len(axes)], fillvalue=-1):
            if not hasattr(sizes, str(axis)):
                sizes[axis] = (size,)  # -1 for an axis that is missing
        chex.assert_shape(array, sizes["".join(axes)] + more, custom_message=name)
