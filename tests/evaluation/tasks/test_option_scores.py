"""Scores by option texts, on likelihoods small enough to divide on paper."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from fqs_jax.evaluation.tasks import option_scores, option_texts
from fqs_jax.evaluation.tasks.decisions import Decisions
from fqs_jax.evaluation.tasks.option_texts import Likelihoods


def likelihoods(items, characters, tokens):
    """Of items (log-likelihoods by option [R, A], number of the right option), and lengths by option."""
    total = Decisions.of([([np.array(log_p, float)], [right]) for log_p, right in items])
    return Likelihoods(
        total, option_texts._divided(total, characters), option_texts._divided(total, tokens)
    )


ABOUT = {"stage": "1", "model": "m", "task": "csqa", "thoughts": "none", "too_long": 2}
# A short option and long ones; the second item has two options only.
FOUND = likelihoods(
    [([[-2.0, -3.0, -8.0]], 1), ([[-4.0, -2.0]], 0)], [[2, 4, 32], [10, 4]], [[1, 1, 5], [1, 1]]
)


def test_each_length_can_choose_another_option():
    """-2, -3, -8 over 2, 4, 32 characters are -1, -0.75, -0.25; over 1, 1, 5 tokens -2, -3, -1.6.

    -4, -2 are -0.4, -0.5 a character.
    """
    np.testing.assert_allclose(FOUND.by_characters.log_probs_NxRxDxA[0, 0, 0], [-1, -0.75, -0.25])
    np.testing.assert_allclose(FOUND.by_tokens.log_probs_NxRxDxA[0, 0, 0], [-2, -3, -1.6])
    np.testing.assert_allclose(FOUND.by_characters.log_probs_NxRxDxA[1, 0, 0, :2], [-0.4, -0.5])
    row = option_scores.row(FOUND, **ABOUT)
    assert row.accuracy.value == 0
    assert row.accuracy_by_characters.value == 0.5  # the second item
    assert row.accuracy_by_tokens.value == 0
    first = math.log(math.exp(1) + 1 + math.exp(-5))  # -log p(right) among three
    second = math.log(1 + math.exp(2))
    assert row.nll == pytest.approx((first + second) / 2)
    assert (row.items, row.too_long, row.scoring) == (2, 2, "text")
    interval = binomtest(1, 2).proportion_ci(method="wilson")
    assert row.accuracy_by_characters == pytest.approx((0.5, interval.low, interval.high), abs=1e-5)
    assert math.isnan(row.gain.value) and row.accuracy_by_tokens_spread == 0


def test_gains_and_spreads_over_thoughts():
    """After one of two thoughts the right option is the likeliest."""
    items = [([[-1.0, -2.0], [-3.0, -2.0]], 0)] * 2
    after = likelihoods(items, [[1, 1]] * 2, [[2, 1]] * 2)
    base = likelihoods([([[-3.0, -2.0]], 0)] * 2, [[1, 1]] * 2, [[2, 1]] * 2)
    row = option_scores.row(after, base, **ABOUT)
    assert row.accuracy.value == 0.5 and row.gain == (0.5, 0.5, 0.5)
    assert row.accuracy_spread == pytest.approx(math.sqrt(0.5))
    assert row.accuracy_by_tokens.value == 1.0  # -0.5 and -1.5 beat -2
    assert row.gain_by_tokens.value == 0.0 and row.accuracy_by_tokens_spread == 0
