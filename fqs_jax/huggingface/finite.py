"""Checks that the numbers of a tensor are finite, and stay so in a narrower type."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.notes import note


def check_finite(stored: np.ndarray, place: str, by_token: bool = False) -> None:
    """Refuse a tensor that has NaN or infinite values.

    Args:
      stored: contiguous float32, bfloat16 or float16.
      place: file and tensor, for messages.
      by_token: each row belongs to one token; see `_may_be_broken`. Such rows are noted.

    Raises:
      UserError: with the number of such values.
    """
    if _all_finite(stored):
        return
    values = stored.astype(np.float32)
    if by_token:
        whole = np.isfinite(values).all(axis=1)
        if _may_be_broken(whole):
            broken = np.flatnonzero(~whole)
            shown = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
            note(
                f"{place} has NaN or infinite values in {len(broken)} of {len(values)} rows, those of "
                f"tokens {shown}: texts with these tokens have no loss"
            )
            return
    nans, infs = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    first = np.unravel_index(int(np.argmax(~np.isfinite(values))), values.shape)
    raise UserError(
        f"{place} has {nans} NaN and {infs} infinite of {stored.size} values, the first at "
        f"{[int(i) for i in first]}: the checkpoint is broken; fetch or export it again"
    )


def check_fits(array: Any, dtype: Any, place: str, by_token: bool = False) -> None:
    """Refuse a tensor with a value that is NaN or infinite, or becomes so in another type.

    Args:
      array: a numpy or jax array of a float type; it stays on its devices.
      dtype: the type that it will be converted to.
      place: the tensor, for the error.
      by_token: each row belongs to one token; rows that `_may_be_broken` are not looked at.

    Raises:
      UserError: names the value.
    """
    dtype = jnp.dtype(dtype)
    if not isinstance(array, jax.Array):
        array = np.asarray(array, np.float32)  # of which numpy finds the extremes fast
    if by_token:
        library = jnp if isinstance(array, jax.Array) else np
        whole = library.isfinite(array).all(axis=1)
        if _may_be_broken(whole):
            array = library.where(whole[:, None], array, 0)
    # Rounding keeps the order of numbers, and the largest of numbers and a NaN is NaN.
    for extreme in (array.max(), array.min()):
        value = np.float32(extreme)
        if not np.isfinite(value):
            raise UserError(f"{place} has the value {value}, so it cannot be used")
        with np.errstate(over="ignore"):
            fits = np.isfinite(value.astype(dtype))
        if not fits:
            most = float(jnp.finfo(dtype).max)
            raise UserError(
                f"{place} has the value {value:g}, which is infinite in {dtype.name} (largest: "
                f"{most:g}); choose another dtype, such as float32"
            )


def _may_be_broken(whole: Any) -> bool:
    """True if so few rows of a table of tokens have NaN or infinite values that it can be used.

    Only texts with the token of a row read it, and people do publish tables with rows that were never
    trained. Up to half of them may be broken.

    Args:
      whole: bool [rows], True for the rows whose values are all finite.
    """
    return 2 * int(whole.sum()) >= len(whole)


def _all_finite(stored: np.ndarray) -> bool:
    """True if no value is NaN or infinite, judged by the bits, which is fast and takes no memory.

    A float is finite if its bits without the sign are below those of infinity. As signed integers all
    negative floats are negative, as unsigned integers they come after all positive ones.
    """
    bits = stored.reshape(-1).view(f"u{stored.itemsize}")
    infinity = int(np.array(np.inf, stored.dtype).view(bits.dtype))
    sign = 1 << (8 * stored.itemsize - 1)
    signed = bits.view(f"i{stored.itemsize}")
    return bool(signed.max() < infinity and (bits.max() < sign | infinity))
