"""Scores of single tokens: they add up to those of a text, and each is where it belongs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.evaluation import text
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import decoder
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig
from tests import tiny_models
from tests.tiny_runs import hf_folder, sentences

WINDOW = 9
# Long and short in turn, so that batches, which go by length, mix them up; one has nothing to predict.
DOCUMENTS = ["the cat", " ".join(sentences(4)), "", "one old king saw nobody.", "a big tree"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return loading.load(str(hf_folder(tmp_path_factory.mktemp("hf") / "model")))


@pytest.fixture(scope="module")
def thinking(plain) -> Loaded:
    model = tiny_models.model_config(vocab_size=plain.tokenizer.vocab_size)
    thought = ThoughtConfig(n_ahead=5, rationales=1)
    params = tiny_models.random_params(model)
    return Loaded(params, model, plain.tokenizer, thought, plain.source, "thinking")


@pytest.fixture(scope="module")
def scores(plain):
    return text.score(plain, DOCUMENTS, WINDOW, 2, temperatures=(1.0, 2.0))


def by_hand(loaded, temperature=1.0):
    """log p of each token of each window, one window at a time; and the number of its document."""
    log_p, numbers = [], []
    for number, document in enumerate(DOCUMENTS):
        ids = loaded.tokenizer.encode(document)
        pieces = [ids[i : i + WINDOW - 1] for i in range(0, len(ids), WINDOW - 1)]
        if len(pieces) > 1 and len(pieces[-1]) < WINDOW - 1:
            pieces.pop()
        for piece in pieces:
            row = [loaded.tokenizer.bos_id, *piece]
            padded = jnp.array([row + [0] * (WINDOW - len(row))])  # one shape, one compilation
            logits = decoder.logits(loaded.params["lm"], padded, loaded.model)[0]
            table = jax.nn.log_softmax(logits / temperature)
            log_p.append([float(table[t, token]) for t, token in enumerate(piece)])
            numbers.append(number)
    return log_p, numbers


def test_every_token_in_order_is_that_of_a_full_forward_pass(plain, scores):
    windows, numbers = by_hand(plain)
    assert len(windows) > len(DOCUMENTS) and len(set(map(len, windows))) > 2
    np.testing.assert_allclose(scores.plain_N, np.concatenate(windows), atol=1e-4)
    lengths = list(map(len, windows))
    np.testing.assert_array_equal(scores.window_N, np.repeat(range(len(windows)), lengths))
    np.testing.assert_array_equal(scores.document_N, np.repeat(numbers, lengths))
    assert len(scores.thinking_RxN) == 0 and (scores.best_RxN == scores.plain_N).all()


def test_temperatures(plain, scores):
    assert scores.tempered_CxN.shape == (2, len(scores.plain_N))
    np.testing.assert_allclose(scores.tempered_CxN[0], scores.plain_N, atol=1e-5)
    warm = np.concatenate(by_hand(plain, 2.0)[0])
    np.testing.assert_allclose(scores.tempered_CxN[1], warm, atol=1e-4)
    without = text.score(plain, DOCUMENTS[:1], WINDOW, 2)
    assert without.tempered_CxN.shape == (0, len(without.plain_N))


@pytest.mark.parametrize("kind", ["plain", "thinking"])
def test_the_summary_and_seeds(kind, request):
    loaded, done = request.getfixturevalue(kind), []
    scores = text.score(
        loaded, DOCUMENTS, WINDOW, 2, seed=5, progress=lambda *counts: done.append(counts)
    )
    log_p, _ = by_hand(loaded)
    assert done[-1] == (len(log_p),) * 2
    summary = scores.summary()
    assert (summary["tokens"], summary["windows"]) == (sum(map(len, log_p)), len(log_p))
    assert summary["nll_base"] == pytest.approx(-np.mean(np.concatenate(log_p)), rel=1e-5)
    if kind == "thinking":
        assert abs(summary["nll_thought"] - summary["nll_base"]) > 1e-2
        assert scores.best_RxN is scores.thinking_RxN
        other = text.score(loaded, DOCUMENTS, WINDOW, 2, seed=6)
        np.testing.assert_allclose(other.plain_N, scores.plain_N, atol=1e-5)
        assert np.abs(other.thinking_RxN - scores.thinking_RxN).max() > 1e-2
    else:
        assert "nll_thought" not in summary


def test_window(plain):
    assert text.window(plain) == plain.model.max_seq_len == 64
    model = dataclasses.replace(plain.model, max_seq_len=1 << 20)
    assert text.window(dataclasses.replace(plain, model=model)) == 1024


def test_nothing_to_predict(plain):
    with pytest.raises(UserError, match="no token to predict"):
        text.score(plain, ["", ""])
