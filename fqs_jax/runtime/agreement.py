"""What several processes decide together; a single one decides at once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fqs_jax.runtime.errors import UserError

T = TypeVar("T")


def on_main(work: Callable[[], None]) -> None:
    """Process 0 does it while the others wait; where it fails, all of them fail.

    Raises:
      UserError: of process 0.
    """
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as error:
            failure = error
    if agreed([1] if failure else []):
        raise failure or UserError("process 0 stopped; see its error")


def anyone(condition: bool) -> bool:
    """Whether it holds in any process."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.bool_(condition)).any())


def agreed(numbers: Sequence[int]) -> list[int]:
    """Process 0's numbers, on all processes."""
    if jax.process_count() == 1:
        return list(numbers)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    padded = np.resize(np.asarray(numbers or [0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(padded).tolist()


def check_same(value: str, what: str) -> None:
    """Refuse to go on if processes have different values of what should be one.

    Raises:
      UserError: on all processes; names one that differs from process 0.
    """
    if jax.process_count() == 1:
        return
    hashes = multihost_utils.process_allgather(np.uint32(zlib.crc32(value.encode())))
    if (different := hashes != hashes[0]).any():
        raise UserError(
            f"process {int(different.argmax())} has other {what} than process 0: start the same command "
            "with the same files on every host"
        )
