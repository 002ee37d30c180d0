"""95% intervals of what was counted or drawn."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

MAX_TEMPERATURE = math.exp(3.0)  # of a fit, which is exact up to it


_Z = 1.959964  # standard deviations to either side that hold 95% of a normal distribution


def wilson(share: float, count: int) -> tuple[float, float]:
    """Of a share of `count` items (Wilson 1927); not empty at 0 and 1, and within them.

    With several seeds averaged it errs on the wide side: averages vary less than single answers.
    """
    z2 = _Z**2 / count
    middle = share + z2 / 2
    half = math.sqrt(max(0.0, z2 * share * (1 - share) + z2**2 / 4))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def percentile(resampled: np.ndarray) -> tuple[float, float]:
    """Of a statistic, from its values on resampled data (percentile bootstrap)."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def fit_temperature(log_probs_NxC: np.ndarray, right_N: np.ndarray) -> float:
    """The temperature at which the mean NLL of N choices among C is least.

    Args:
      log_probs_NxC: log-probabilities, up to a constant for each choice.
      right_N: numbers of the right ones, int.

    Returns:
      A temperature between 1 / MAX_TEMPERATURE and MAX_TEMPERATURE.
    """

    def nll(log_temperature: float) -> float:
        log_p_NxC = log_softmax(log_probs_NxC / math.exp(log_temperature), axis=-1)
        return float(-np.take_along_axis(log_p_NxC, right_N[:, None], axis=-1).mean())

    most = math.log(MAX_TEMPERATURE)
    return math.exp(minimize_scalar(nll, bounds=(-most, most), method="bounded").x)
