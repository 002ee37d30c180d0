"""Arrays in the cache; a damaged file counts as missing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from fqs_jax.runtime import inputs


def read(path: Path, kind: Any, size: int | None = None, mapped: bool = False) -> np.ndarray | None:
    """A one-dimensional array of a `.npy` file; None if it is absent, or broken in any way.

    Args:
      kind: its dtype.
      size: its length; None = any.
      mapped: the file is mapped into memory and not read.
    """
    # A header can promise any size: mapping finds that the file is too short for it.
    with contextlib.suppress(Exception):  # NumPy raises a dozen kinds for broken files
        inputs.check_file(path)
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if values.ndim == 1 and values.dtype == np.dtype(kind) and size in (None, len(values)):
            return values if mapped else np.array(values)
    return None
