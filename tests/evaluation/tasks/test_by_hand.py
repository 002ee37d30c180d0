"""Metrics of a model whose every probability is written down here, from text to score."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from fqs_jax.data import tokenizer_training
from fqs_jax.evaluation.tasks import scores
from fqs_jax.evaluation.tasks.asking import Settings, evaluate
from fqs_jax.evaluation.tasks.items import Item, lettered
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from tests.tiny_runs import sentences


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    lines = [*sentences(200), "Q: A B C D E (A) (B) (C) (D) (E) 0 1 2 3 4 5 6 7 8 9"]
    return tokenizer_training.train_sentencepiece(lines, tmp_path_factory.mktemp("t"), 320)


def bigrams(tokenizer, rows, temperature=1.0):
    """A model of p(next | current) = rows[current][next]; what a row leaves over goes to one other id.

    Its layers add nothing, so that the hidden state is the current token, one-hot.
    """
    V = tokenizer.vocab_size
    config = ModelConfig(
        vocab_size=V, width=V, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=1
    )
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), decoder.abstract_params(config)
    )
    probs_VxV = np.full((V, V), 1e-12)
    for current, row in rows.items():
        for following, prob in row.items():
            probs_VxV[current, following] = prob
        probs_VxV[current, tokenizer.encode("tree")[-1]] = 1 - sum(row.values())
    params["embed"]["embedding"] = 1000 * np.eye(V, dtype=np.float32)
    params["final_norm"]["scale"] = np.full(V, V**-0.5, np.float32)
    params["head"]["kernel"] = (np.log(probs_VxV) / temperature).astype(np.float32)
    return Loaded({"lm": params}, config, tokenizer, None, Path(), "bigrams")


def measured(loaded, item):
    found = evaluate(loaded, [item], Settings()).plain
    about = {"stage": "", "model": "", "task": "", "thoughts": "none", "too_long": 0}
    return scores.row(found, None, **about)


def behind_the_blank(tokenizer, answer):
    """The ids of "A:" and an answer on a line: that before its first symbol, and the symbols'."""
    ids = tokenizer.encode(f"A: {answer}\n")
    symbols = [tokenizer.encode(f"A: {symbol}\n")[-2] for symbol in answer]
    assert ids[-1 - len(answer) : -1] == symbols and tokenizer.decode(ids[-1:]) == "\n"
    return ids[-2 - len(answer)], *symbols, ids[-1]


def test_a_two_digit_number(tokenizer):
    """ "18", its digits and newline 0.2 of 0.5, 0.1 of 0.4 and 0.3 of 0.4."""
    before, one, eight, newline = behind_the_blank(tokenizer, "18")
    _, zero, two, five, _ = behind_the_blank(tokenizer, "025")
    rows = {
        before: {zero: 0.01, one: 0.2, two: 0.09, eight: 0.1, newline: 0.1},
        one: {five: 0.2, eight: 0.1, newline: 0.1},
        eight: {zero: 0.1, newline: 0.3},
    }
    item = Item("Q: And how many are 9 and 9?\nA:", " 18", (), "number")
    row = measured(bigrams(tokenizer, rows), item)
    assert row.expected_prob == pytest.approx(0.4 * 0.25 * 0.75, rel=1e-5)  # 0.075
    assert row.nll == pytest.approx(-math.log(0.075), rel=1e-5)
    assert row.accuracy.value == 0  # 5 is likelier than 8
    # A comma and a minus sign are walked over.
    signed = Item(item.prompt, " -1,8", (), "number")
    minus, comma = (tokenizer.encode(text)[-1] for text in ("A: -", "A: 1,"))
    rows |= {minus: rows[before], comma: rows[one]}
    row = measured(bigrams(tokenizer, rows), signed)
    assert row.expected_prob == pytest.approx(0.075, rel=1e-5)


def test_a_letter_and_its_sharpening(tokenizer):
    """C and newline, 0.1 of 0.25 and 0.2 of 0.8; at temperature 1/2 each probability is squared."""
    before, *letters, newline = behind_the_blank(tokenizer, "ABCDE")
    first = dict(zip([*letters, newline], (0.05, 0.02, 0.1, 0.02, 0.01, 0.05), strict=True))
    after = dict(zip([*letters, newline], (0.3, 0.1, 0.1, 0.05, 0.05, 0.2), strict=True))
    rows = {before: first, letters[2]: after}
    item = lettered("Who saw the cat?", ["Tom", "nobody", "the king", "a bird", "her"], 2)
    row = measured(bigrams(tokenizer, rows), item)
    assert row.expected_prob == pytest.approx(0.4 * 0.25, rel=1e-5)  # 0.1
    assert row.accuracy.value == 1 and row.nll == pytest.approx(-math.log(0.1 / 0.2), rel=1e-5)
    sharp = measured(bigrams(tokenizer, rows, temperature=0.5), item)
    c = 0.0100 / (0.0025 + 0.0004 + 0.0100 + 0.0004 + 0.0001 + 0.0025)
    line = 0.0400 / (0.0900 + 0.0100 + 0.0100 + 0.0025 + 0.0025 + 0.0400)
    assert sharp.expected_prob == pytest.approx(c * line, rel=1e-5)  # 0.162
    assert sharp.accuracy.value == 1
    flat = measured(bigrams(tokenizer, rows, temperature=20.0), item)
    assert flat.expected_prob < row.expected_prob < sharp.expected_prob and flat.accuracy.value == 1
