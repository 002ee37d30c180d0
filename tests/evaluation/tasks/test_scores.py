"""Metrics by hand: small probabilities that can be multiplied on paper."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from fqs_jax.evaluation import statistics
from fqs_jax.evaluation.tasks import scores
from fqs_jax.evaluation.tasks.asking import Answers
from fqs_jax.evaluation.tasks.decisions import Decisions


def decisions(*items):
    """Decisions with one thought; each item is a list of (probabilities, right one)."""
    return Decisions.of(
        [([np.log([probs]) for probs, _ in item], [right for _, right in item]) for item in items]
    )


def row(published, choices=None, elsewhere=None):
    answers = Answers(published, choices or published)
    about = {"stage": "0", "model": "m", "task": "t", "thoughts": "none", "too_long": 0}
    return scores.row(answers, elsewhere, **about)


def test_a_two_digit_number_by_hand():
    """ "18" and a newline among digits and newline, over a vocabulary in which they hold only a part.

    p(1) = 0.2 of 0.5 allowed, p(8 | 1) = 0.1 of 0.4, p(newline | 18) = 0.3 of 0.4.
    """
    first = [0.01, 0.2, 0.09, 0, 0, 0, 0, 0, 0.1, 0, 0.1]  # digits 0 to 9, newline
    second = [0, 0, 0, 0, 0, 0.2, 0, 0, 0.1, 0, 0.1]
    third = [0.1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.3]
    with np.errstate(divide="ignore"):
        found = decisions([(first, 1), (second, 8), (third, 10)])
    expected = 0.2 / 0.5 * 0.1 / 0.4 * 0.3 / 0.4
    assert expected == pytest.approx(0.075)
    assert scores.expected_prob(found) == pytest.approx(expected)
    assert not found.all_right().any()  # 5 is likelier than 8


def test_a_letter_by_hand():
    """p(C) = 0.1 of 0.25 among five letters and newline, then newline 0.2 of 0.8."""
    letter = [0.05, 0.02, 0.1, 0.02, 0.01, 0.05]
    after = [0.3, 0.1, 0.1, 0.05, 0.05, 0.2]
    published = decisions([(letter, 2), (after, 5)])
    choices = decisions([(letter[:5], 2)])
    found = row(published, choices)
    assert found.expected_prob == pytest.approx(0.4 * 0.25)  # the newline takes three quarters
    assert found.accuracy.value == 1 and found.nll == pytest.approx(-math.log(0.1 / 0.2))


def test_items_differ_in_length_and_choices():
    found = decisions([([0.5, 0.5], 0)], [([0.2, 0.3, 0.5], 2), ([0.25, 0.25, 0.5], 0)])
    np.testing.assert_allclose(np.exp(found.right_log_prob())[:, 0], [0.5, 0.125])
    np.testing.assert_array_equal(found.all_right()[:, 0], [True, False])
    log_probs, targets = found.single()
    assert log_probs.shape == (3, 3) and targets.tolist() == [0, 2, 0]


def test_sharpening_moves_the_published_metric_and_not_the_accuracy():
    """An under-confident model: right 6 times in 10, sure of it with 0.4."""
    rng = np.random.default_rng(0)
    items = []
    for n in range(200):
        probs = np.full(4, 0.2)
        probs[0] = 0.4
        items.append([(probs, 0 if n % 10 < 6 else int(rng.integers(1, 4)))])
    base = decisions(*items)
    values = [scores.expected_prob(base, t) for t in (2.0, 1.0, 0.5, 0.05)]
    assert values == sorted(values) and values[1] == pytest.approx(0.6 * 0.4 + 0.4 * 0.2)
    assert values[-1] == pytest.approx(0.6, abs=1e-3)  # its limit is the accuracy
    for temperature in (2.0, 0.5, 0.05):
        scaled = Decisions(base.log_probs_NxRxDxA / temperature, base.target_NxD)
        np.testing.assert_array_equal(scaled.all_right(), base.all_right())
        assert scores.expected_prob(scaled) == pytest.approx(
            scores.expected_prob(base, temperature)
        )
    found = row(base)
    assert found.accuracy.value == 0.6 and found.expected_prob == pytest.approx(0.32)
    assert found.sharpened == pytest.approx(0.6, abs=1e-3)
    # Calibrated: p of the likeliest is 0.6, so z / T = log(0.6 / (0.4 / 3)).
    assert found.calibrated_at == pytest.approx([math.log(2) / math.log(4.5)] * 2, rel=1e-3)
    assert found.calibrated == pytest.approx(0.6 * 0.6 + 0.4 * 0.4 / 3, rel=1e-3)


def test_temperatures_are_fitted_elsewhere():
    """Even items want it sharp, odd ones flat: each half gets what the other one wants."""
    sure, wrong = [([0.6, 0.4], 0)], [([0.6, 0.4], 1)]
    mixed = decisions(*[sure, wrong] * 20)
    value, (even, odd) = scores.scaled(mixed, None, scores.highest_temperature)
    assert even == pytest.approx(math.exp(3)) and odd == pytest.approx(math.exp(-3))
    assert value == pytest.approx((0.505 + 0) / 2, abs=0.01)
    value, temperatures = scores.scaled(mixed, decisions(sure), scores.highest_temperature)
    assert temperatures == pytest.approx([math.exp(-3)])
    assert value == pytest.approx(0.5, abs=1e-3)
    value, temperatures = scores.scaled(decisions(sure), None, scores.highest_temperature)
    assert math.isnan(value) and temperatures == ()  # one item has no other half


def test_seeds_are_averaged_and_spread():
    log_probs = np.log([[[[0.5, 0.5]], [[0.7, 0.3]]], [[[0.4, 0.6]], [[0.8, 0.2]]]])
    found = row(Decisions(log_probs, np.zeros((2, 1), int)))
    assert found.expected_prob == pytest.approx((0.5 + 0.7 + 0.4 + 0.8) / 4)
    assert found.expected_prob_spread == pytest.approx(np.std([0.45, 0.75], ddof=1))
    assert found.accuracy.value == 0.75 and found.accuracy_spread == pytest.approx(np.sqrt(0.125))


def test_gain_is_over_the_same_items():
    """Right where the base is, and on two more of ten: the interval is that of the two alone."""
    correct = np.arange(10)[:, None] < 7
    base = np.arange(10)[:, None] < 5
    gain, low, high = scores.difference(correct, base)
    assert gain == pytest.approx(0.2) and 0 <= low < 0.2 < high <= 0.5
    assert scores.difference(base, base) == (0, 0, 0)
    sure, unsure = decisions([([0.6, 0.4], 0)]), decisions([([0.4, 0.6], 0)])
    assert math.isnan(row(sure).gain.value)
    about = {"stage": "", "model": "", "task": "", "thoughts": "", "too_long": 0}
    found = scores.row(Answers(sure, sure), None, Answers(unsure, unsure), **about)
    assert found.gain == (1, 1, 1)


def test_wilson():
    """Against the textbook form."""
    for share, count in ((0.0, 10), (0.3, 40), (1.0, 7)):
        z = 1.959964
        centre = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count)
        half *= math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
        assert statistics.wilson(share, count)[1:] == pytest.approx((centre - half, centre + half))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    "probs, accuracy",
    [
        ([1 - 1e-12, 1e-12], 1.0),  # all right
        ([1e-300, 1 - 1e-12], 0.0),  # all wrong
        ([0.5, 0.5], 1.0),  # ties: the first option is taken
    ],
)
def test_scores_without_any_spread(count, probs, accuracy):
    """No warning and no NaN, except the gain of the base and temperatures of a single item."""
    answers = decisions(*([[(probs, 0)]] * count))
    base = row(answers)
    assert all(map(math.isnan, base.gain))
    about = {"stage": "0", "model": "m", "task": "t", "thoughts": "none", "too_long": 0}
    found = scores.row(Answers(answers, answers), None, Answers(answers, answers), **about)
    assert found.gain == (0, 0, 0)
    for score in (base, found):
        theirs = binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
        assert score.accuracy == pytest.approx((accuracy, theirs.low, theirs.high), abs=1e-6)
        assert score.expected_prob == pytest.approx(probs[0] / sum(probs))
        assert score.nll == pytest.approx(-math.log(probs[0] / sum(probs)), abs=1e-9)
        assert score.expected_prob_error == pytest.approx(0, abs=1e-12)
        assert score.expected_prob_spread == score.accuracy_spread == 0
        assert math.isnan(score.calibrated) == math.isnan(score.sharpened) == (count == 1)


def test_each_half_has_the_temperature_of_the_other():
    """Items of even number are at the temperature of the odd ones, in the order of the items."""
    items = [[([0.8, 0.2], n % 2)] for n in (0, 0, 1, 0, 0)]
    found = decisions(*items)
    temperatures = {3: 2.0, 2: 0.5}  # by the number of items that are fitted: even, odd
    log_prob_NxR, fitted = scores.scaled_by_halves(
        found, lambda half: temperatures[len(half.target_NxD)]
    )
    assert fitted == (0.5, 2.0)  # of the even items, then of the odd ones
    warm, cold = 0.8**0.5, 0.8**2
    right = [cold / (cold + 0.2**2), warm / (warm + 0.2**0.5)]
    expected = [right[0], right[1], 1 - right[0], right[1], right[0]]
    np.testing.assert_allclose(np.exp(log_prob_NxR)[:, 0], expected)
