"""Decisions that several processes take together; a single process decides at once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from fqs_jax.runtime.errors import SaidElsewhere, UserError


def on_main(work: Callable[[], None]) -> None:
    """Let process 0 do some work while the others wait. If it fails, all processes fail.

    Raises:
      SaidElsewhere: process 0 failed. Process 0 itself raises its own exception.
    """
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as error:
            failure = error
    if anyone(failure is not None):
        raise failure or SaidElsewhere("process 0 stopped; see its error")


def anyone(condition: bool) -> bool:
    """True on all processes if the condition holds on any of them."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.bool_(condition)).any())


def agreed(numbers: Sequence[int]) -> list[int]:
    """The numbers (int32) of process 0, on all processes."""
    if jax.process_count() == 1:
        return list(numbers)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    padded = np.resize(np.asarray(numbers or [0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(padded).tolist()


def check_same(value: str, name: str) -> None:
    """Refuse values that differ between processes.

    Args:
      name: the name of the value for the message, in the plural.

    Raises:
      UserError: on all processes; it names one that differs from process 0, which the error of JAX's
        `multihost_utils.assert_equal` does not.
    """
    if jax.process_count() == 1:
        return
    hashes = multihost_utils.process_allgather(np.uint32(zlib.crc32(value.encode())))
    if (different := hashes != hashes[0]).any():
        raise UserError(
            f"process {int(different.argmax())} has other {name} than process 0: start the same command "
            "with the same files on every host"
        )
