"""Scores of a model that answers a task by the texts of the options; docs/metrics.md explains them."""

from __future__ import annotations

import dataclasses

from fqs_jax.evaluation import statistics
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.evaluation.tasks import scores
from fqs_jax.evaluation.tasks.decisions import Decisions
from fqs_jax.evaluation.tasks.option_texts import Likelihoods


@dataclasses.dataclass(frozen=True)
class Row:
    """Scores of one model on one task, averaged over items and thought seeds.

    Attributes:
      scoring: "text".
      thoughts: "none", "greedy", or the number of sampled thoughts.
      items, too_long: numbers of items scored, and of items left out because they do not fit.
      accuracy: share of items whose right option has the likeliest text, with its Wilson interval over
        items; `_by_characters` and `_by_tokens` after the log-likelihood is divided by the length.
        `_spread` is the standard deviation between thought seeds.
      gain: accuracy less that of the base, on the same items, with the interval of a bootstrap over
        items; NaN for the base itself.
      nll: mean -log p(right option) among the options, by the likelihood of their whole texts, nats.
    """

    stage: str
    model: str
    task: str
    scoring: str
    thoughts: str
    items: int
    too_long: int
    accuracy: Interval
    accuracy_spread: float
    gain: Interval
    accuracy_by_characters: Interval
    accuracy_by_characters_spread: float
    gain_by_characters: Interval
    accuracy_by_tokens: Interval
    accuracy_by_tokens_spread: float
    gain_by_tokens: Interval
    nll: float


def row(
    found: Likelihoods,
    base: Likelihoods | None = None,
    *,
    stage: str,
    model: str,
    task: str,
    thoughts: str,
    too_long: int,
) -> Row:
    """All scores of a model's likelihoods.

    Args:
      base: those of the base for the same items; None for the base itself.
      stage, model, task, thoughts, too_long: copied into the row.
    """
    compared = base or (None, None, None)
    total, characters, tokens = map(_accuracy, found, compared)
    return Row(
        stage=stage,
        model=model,
        task=task,
        scoring="text",
        thoughts=thoughts,
        items=len(found.total.target_NxD),
        too_long=too_long,
        accuracy=total[0],
        accuracy_spread=total[1],
        gain=total[2],
        accuracy_by_characters=characters[0],
        accuracy_by_characters_spread=characters[1],
        gain_by_characters=characters[2],
        accuracy_by_tokens=tokens[0],
        accuracy_by_tokens_spread=tokens[1],
        gain_by_tokens=tokens[2],
        nll=float(-found.total.right_log_prob().mean()),
    )


def _accuracy(found: Decisions, base: Decisions | None) -> tuple[Interval, float, Interval]:
    """Accuracy, its spread between thought seeds, and its gain over the base."""
    correct_NxR = found.all_right()
    gain = statistics.UNKNOWN
    if base is not None:
        gain = scores.difference(correct_NxR, base.all_right())
    accuracy = statistics.wilson(float(correct_NxR.mean()), len(correct_NxR))
    return accuracy, scores.spread(correct_NxR), gain
