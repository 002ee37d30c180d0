"""Trying again until it is too late."""

from __future__ import annotations

import time
from collections.abc import Iterator


def until(deadline: float, pause: float = 0.3) -> Iterator[float]:
    """Seconds left to a moment of `time.monotonic`, again and again until there are none."""
    while (left := deadline - time.monotonic()) > 0:
        yield left
        time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
