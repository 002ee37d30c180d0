"""What several processes decide together; a single one decides at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fqs_jax.checkpoint_errors import Damaged

T = TypeVar("T")


def together(read: Callable[[], T]) -> T:
    """The result of a read that succeeds on all processes, or Damaged on all."""
    result, failure = None, None
    try:
        result = read()
    except Damaged as error:
        failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.bool_(failure is not None))
        if failure is None and failed.any():
            failure = Damaged(f"process {failed.argmax()} cannot read its part")
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def agreed(numbers: Sequence[int]) -> list[int]:
    """Process 0's numbers, on all processes."""
    if jax.process_count() == 1:
        return list(numbers)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    padded = np.resize(np.asarray(numbers or [0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(padded).tolist()
