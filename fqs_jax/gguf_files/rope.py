"""Rotary embeddings: from the factors in a GGUF file back to the numbers of Llama 3's scaling.

llama.cpp stores, for each frequency, the factor by which Llama 3 slows it (`rope_freqs.weight`), and not the
four numbers that these factors were made of. Hugging Face folders have the numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fqs_jax.runtime.errors import UserError

_TOLERANCE = 1e-4  # relative; float32 arithmetic is wrong by 1e-6
_USUAL_HIGH = 4.0  # high_freq_factor of all Llama 3 models


def scaling(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """The `rope_scaling` of config.json that makes the same factors; None if it changes nothing.

    Only ratios of the numbers matter, so low_freq_factor is taken to be 1, as in all Llama 3 models.

    Args:
      factors: [H/2], what each wavelength is multiplied by.
      theta: base of the wavelengths.

    Raises:
      UserError: no Llama 3 scaling has these factors.
    """
    factors = factors.astype(np.float64)
    if np.allclose(factors, 1, rtol=_TOLERANCE):
        return None
    factor = float(np.round(factors.max(), 4))
    wavelengths = 2 * math.pi * theta ** (np.arange(len(factors)) / len(factors))
    blended = (factors > 1 + _TOLERANCE) & (factors < factor * (1 - _TOLERANCE))
    for high, original in _candidates(factors[blended], wavelengths[blended], factor):
        if np.allclose(make_factors(wavelengths, factor, high, original), factors, rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UserError("tensor rope_freqs.weight has other factors than Llama 3's scaling makes")


def make_factors(wavelengths: np.ndarray, factor: float, high: float, original: int) -> np.ndarray:
    """Llama 3's factors: 1 for short wavelengths, `factor` for long ones, and a blend between.

    Args:
      high: wavelengths below original / high are short.
      original: context length of the first training; wavelengths above it are long.
    """
    smooth = np.clip((original / wavelengths - 1) / (high - 1), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _candidates(
    blended: np.ndarray, wavelengths: np.ndarray, factor: float
) -> list[tuple[float, int]]:
    """Pairs of (high, original) that the blended factors suggest."""
    found = [(_USUAL_HIGH, 8192)]
    if factor <= 1 or not len(blended):
        return found
    # A line: smooth = original / (high - 1) / wavelength - 1 / (high - 1).
    smooth = (1 / blended - 1 / factor) / (1 - 1 / factor)
    found.append((_USUAL_HIGH, round((smooth[0] * (_USUAL_HIGH - 1) + 1) * wavelengths[0])))
    if len(blended) > 1:
        slope, offset = np.polyfit(1 / wavelengths, smooth, 1)
        if slope > 0 > offset:
            found.append((round(1 - 1 / offset, 3), round(-slope / offset)))
    return [(float(high), int(original)) for high, original in found if original > 0]
