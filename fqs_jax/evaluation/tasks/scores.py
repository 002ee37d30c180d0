"""Scores of a model's decisions on a task; docs/metrics.md explains how to read them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from fqs_jax.evaluation import statistics
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.evaluation.tasks.asking import Answers
from fqs_jax.evaluation.tasks.decisions import Decisions

_TEMPERATURES = np.exp(np.linspace(-3.0, 3.0, 121))


@dataclasses.dataclass(frozen=True)
class Row:
    """Scores of one model on one task, averaged over items and thought seeds.

    Attributes:
      thoughts: "none", "greedy", or the number of sampled thoughts.
      items, too_long: numbers of items scored, and of items left out because they do not fit.
      expected_prob: the published metric; `_error` is its standard error over items. `_spread` is the
        standard deviation of the thought seeds' own values, 0 with one seed; it is not the standard
        error of their mean.
      calibrated, sharpened: the published metric at a temperature fitted on other items: the one with
        the highest likelihood of the allowed answers, and the one with the highest metric.
      calibrated_at, sharpened_at: those temperatures.
      accuracy: share of items whose right answer is the likeliest, with its Wilson interval over
        items; `_spread` is its standard deviation between thought seeds.
      gain: accuracy less that of the base, on the same items, with the interval of a bootstrap over
        items; NaN for the base itself.
      nll: mean -log p(right answer) among the answers, nats.
    """

    stage: str
    model: str
    task: str
    thoughts: str
    items: int
    too_long: int
    expected_prob: float
    expected_prob_error: float
    expected_prob_spread: float
    calibrated: float
    calibrated_at: tuple[float, ...]
    sharpened: float
    sharpened_at: tuple[float, ...]
    accuracy: Interval
    accuracy_spread: float
    gain: Interval
    nll: float


def row(
    answers: Answers,
    elsewhere: Decisions | None,
    base: Answers | None = None,
    *,
    stage: str,
    model: str,
    task: str,
    thoughts: str,
    too_long: int,
) -> Row:
    """All scores of a model's answers.

    Args:
      elsewhere: the same model's published decisions on items of another split, to fit temperatures;
        None = the items with even numbers are scored at the temperature of the odd ones, and the
        reverse.
      base: answers of the base to the same items; None for the base itself.
      stage, model, task, thoughts, too_long: copied into the row.
    """
    prob_NxR = np.exp(answers.published.right_log_prob())
    correct_NxR = answers.choices.all_right()
    gain = statistics.UNKNOWN
    if base is not None:
        gain = difference(correct_NxR, base.choices.all_right())
    calibrated, calibrated_at = scaled(answers.published, elsewhere, least_nll_temperature)
    sharpened, sharpened_at = scaled(answers.published, elsewhere, highest_temperature)
    return Row(
        stage=stage,
        model=model,
        task=task,
        thoughts=thoughts,
        items=len(prob_NxR),
        too_long=too_long,
        expected_prob=float(prob_NxR.mean()),
        expected_prob_error=float(prob_NxR.mean(axis=1).std() / math.sqrt(len(prob_NxR))),
        expected_prob_spread=spread(prob_NxR),
        calibrated=calibrated,
        calibrated_at=calibrated_at,
        sharpened=sharpened,
        sharpened_at=sharpened_at,
        accuracy=statistics.wilson(float(correct_NxR.mean()), len(correct_NxR)),
        accuracy_spread=spread(correct_NxR),
        gain=gain,
        nll=float(-answers.choices.right_log_prob().mean()),
    )


def expected_prob(decisions: Decisions, temperature: float = 1.0) -> float:
    """The published metric: mean over items of the product of the right ids' probabilities."""
    return float(np.exp(decisions.right_log_prob(temperature)).mean())


def difference(first_NxR: np.ndarray, second_NxR: np.ndarray) -> Interval:
    """The mean of first - second, item by item, with the interval of a bootstrap over items.

    Items that are easy or hard for both models do not widen it.
    """
    change_N = first_NxR.mean(axis=1) - second_NxR.mean(axis=1)
    return statistics.bootstrap(np.mean, change_N)


def scaled(
    decisions: Decisions,
    elsewhere: Decisions | None,
    fit: Callable[[Decisions], float],
) -> tuple[float, tuple[float, ...]]:
    """The published metric at a temperature that is fitted on other items.

    Returns:
      The metric and the temperatures: one from `elsewhere`, or one for each half of the items. With a
      single item and no `elsewhere` the metric is NaN and there are no temperatures.
    """
    if elsewhere is not None:
        temperature = fit(elsewhere)
        return expected_prob(decisions, temperature), (temperature,)
    log_prob_NxR, temperatures = scaled_by_halves(decisions, fit)
    return float(np.exp(log_prob_NxR).mean()) if temperatures else math.nan, temperatures


def scaled_by_halves(
    decisions: Decisions, fit: Callable[[Decisions], float]
) -> tuple[np.ndarray, tuple[float, ...]]:
    """`right_log_prob` of each item, at the temperature that is fitted on the other half of the items.

    Returns:
      Log-probabilities [N, R], and the temperatures of the items with even and with odd numbers. A
      single item has no other half: its log-probability is NaN, and there are no temperatures.
    """
    halves = [decisions.some(slice(first, None, 2)) for first in (0, 1)]
    log_prob_NxR = np.full(decisions.log_probs_NxRxDxA.shape[:2], math.nan)
    if not len(halves[1].target_NxD):
        return log_prob_NxR, ()
    temperatures = fit(halves[1]), fit(halves[0])
    for first, (half, temperature) in enumerate(zip(halves, temperatures, strict=True)):
        log_prob_NxR[first::2] = half.right_log_prob(temperature)
    return log_prob_NxR, temperatures


def least_nll_temperature(decisions: Decisions) -> float:
    """The temperature at which the right ids are likeliest; every decision has the same weight."""
    return statistics.fit_temperature(*decisions.single())


def highest_temperature(decisions: Decisions) -> float:
    """The temperature, between exp(-3) and exp(3), at which the published metric is highest."""
    return float(max(_TEMPERATURES, key=lambda t: expected_prob(decisions, t)))


def spread(values_NxR: np.ndarray) -> float:
    """The standard deviation of the thought seeds' own means, 0 with one seed."""
    means_R = values_NxR.mean(axis=0)
    return float(means_R.std(ddof=1)) if len(means_R) > 1 else 0.0
