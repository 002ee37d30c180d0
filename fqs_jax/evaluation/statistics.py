"""95% intervals of what was counted or drawn."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar

from fqs_jax.evaluation.problems import Answers

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
    """The temperature at which the mean NLL of these choices is least."""
    choices = Answers(log_probs_NxC[None, :, None], right_N[:, None])

    def nll(log_temperature: float) -> float:
        return float(choices.nll_SxN(math.exp(log_temperature)).mean())

    most = math.log(MAX_TEMPERATURE)
    return math.exp(minimize_scalar(nll, bounds=(-most, most), method="bounded").x)
