"""Statistics of evaluations: 95% intervals of shares and of resampled data, and fitted temperatures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

MAX_TEMPERATURE = math.exp(3.0)  # the highest that a fit tries; the lowest is its inverse
RESAMPLINGS = 2000
_BATCH = 100  # resamplings in memory at once
_Z = 1.959964  # standard deviations to either side that hold 95% of a normal distribution


class Interval(NamedTuple):
    """An estimate with the two ends of its 95% interval; all NaN if there is no estimate."""

    value: float
    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan, math.nan)


def wilson(share: float, count: int) -> Interval:
    """The interval of a share of `count` items (Wilson 1927).

    It has a width at 0 and at 1 too, and never leaves them. Where the share is a mean over several
    seeds it errs on the wide side: averages vary less than single answers. Such a share is no whole
    number of items, which is all that `scipy.stats.binomtest` takes.
    """
    z2 = _Z**2 / count
    middle = share + z2 / 2
    half = math.sqrt(max(0.0, z2 * share * (1 - share) + z2**2 / 4))
    return Interval(
        share, max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))
    )


def bootstrap(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> Interval:
    """The percentile bootstrap of a statistic, over 2,000 resamplings that are always the same ones.

    Args:
      statistic: maps samples [..., N] to values [...]; takes `axis`, which is -1.
      samples: drawn from independently of each other, each [N] with an N of its own.
    """
    import scipy.stats  # takes a second, for which other programs should not wait

    value = float(statistic(*samples, axis=-1))
    if all(len(sample) == 1 for sample in samples):
        return Interval(value, value, value)  # scipy refuses a sample with a single resampling
    result = scipy.stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLINGS,
        batch=_BATCH,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return Interval(value, float(low), float(high))


def flat_fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass, with `name`, `name_low` and `name_high` for each `Interval`."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Interval):
            fields |= {field.name: value.value}
            fields |= {f"{field.name}_low": value.low, f"{field.name}_high": value.high}
        else:
            fields[field.name] = value
    return fields


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
