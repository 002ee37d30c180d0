"""Scores against the slow rollout and against transformers, and what is counted."""

import json

import jax
import numpy as np
import pytest

from configs import common
from fqs_jax.data import corpus
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.evaluation import text as text_lib
from fqs_jax.inference import generation, readings
from fqs_jax.inference.generation import generate
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import loading
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig
from tests import reference, tiny_models
from tests.chats import CHATML, write_bpe
from tests.tiny_runs import hf_folder, sentences

THOUGHT = ThoughtConfig(n_ahead=5, rationales=1, masked_ids=(4,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("hf") / "model", "mistral")


@pytest.fixture(scope="module")
def plain(folder):
    return loading.load(str(folder))


@pytest.fixture(scope="module")
def thinking(plain) -> Loaded:
    """A random thinking model of its own, with the tokenizer of the folder."""
    model = tiny_models.model_config(vocab_size=plain.tokenizer.vocab_size)
    params = tiny_models.random_params(model)
    return Loaded(params, model, plain.tokenizer, THOUGHT, plain.source, "thinking")


def summary(loaded, documents, seq_len, batch_size, **options):
    return text_lib.score(loaded, documents, seq_len, batch_size, **options).summary()


def test_a_text_that_begins_with_the_opening_has_one_alone(tmp_path):
    """As a chat template writes it; no model was trained on texts that begin with two."""
    size = write_bpe(tmp_path, sentences(200), ["<s>"], CHATML, 300, bos_token="<s>")
    tokenizer = tokenizer_lib.load(tmp_path)
    model = tiny_models.model_config(vocab_size=size)
    loaded = Loaded(tiny_models.random_params(model), model, tokenizer, None, tmp_path, "plain")
    text = "the cat saw the cat"
    ids = tokenizer.encode(text)
    assert tokenizer.encode(f"<s>{text}") == [*tokenizer.opening, *ids] != ids
    assert generation.prompt_ids(loaded, f"<s>{text}") == generation.prompt_ids(loaded, text)
    once, also_once = (text_lib.score(loaded, [each], 16, 1) for each in (text, f"<s>{text}"))
    assert len(once.plain_N) == len(ids)
    np.testing.assert_array_equal(once.plain_N, also_once.plain_N)
    data = common.get_config().data
    for rows in ("crop", "pack"):
        data.update(rows=rows, text=str(tmp_path / "text.jsonl"), seq_len=len(ids) + 2)
        (tmp_path / "text.jsonl").write_text(json.dumps({"text": f"<s>{text}"}))
        row = corpus.dataset(data, tokenizer, 1, 0, 0).batch(0)["tokens"][0]
        assert row[: len(ids) + 1].tolist() == [*tokenizer.opening, *ids]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("table", [0, 1])
def test_a_loss_that_is_not_finite_is_refused_with_its_document(
    thinking, monkeypatch, table, value
):
    real = text_lib._log_probs

    def broken(params, batch, *arguments):
        tables = [np.array(part) for part in real(params, batch, *arguments)]
        tables[table][:, np.asarray(batch["document"]) == 1, 2] = value
        return tables

    monkeypatch.setattr(text_lib, "_log_probs", broken)
    scores = text_lib.score(thinking, ["the cat saw the cat", "a big tree saw the cat"], 16, 2)
    with pytest.raises(UserError, match="loss of thinking is not finite, first in document 2 of"):
        scores.check_finite(thinking.label)


def rows_of(loaded, documents, seq_len):
    """The windows of some documents, each begun with BOS, worked out by hand."""
    rows = []
    for document in documents:
        ids = loaded.tokenizer.encode(document)
        pieces = [ids[i : i + seq_len - 1] for i in range(0, len(ids), seq_len - 1)]
        if len(pieces) > 1 and len(pieces[-1]) < seq_len - 1:
            pieces.pop()
        rows += [[loaded.tokenizer.bos_id, *piece] for piece in pieces]
    return rows


def test_windows(plain):
    """Whole documents if they fit, else whole windows; the rest of a long one is left out."""
    texts = ["the", "", "the cat saw seven stars."]
    short, _, long = [len(plain.tokenizer.encode(text)) for text in texts]
    windows, left = divmod(long, 3)
    assert 0 < short <= 3 < long and left
    scores = summary(plain, texts, 4, 2)
    assert scores["tokens"] == short + 3 * windows
    assert scores["tokens_left_out"] == left
    assert scores["windows"] == 1 + windows
    whole = summary(plain, texts, None, 2)
    assert whole["tokens"] == short + long and whole["tokens_left_out"] == 0
    assert whole["seq_len"] == plain.model.max_seq_len
    assert "nll_thought" not in whole


def test_nothing_to_predict(plain):
    with pytest.raises(UserError, match="no token to predict"):
        summary(plain, ["", ""], None, 2)


def test_text_nll_is_that_of_transformers(folder, plain):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    documents = [" ".join(sentences(4, seed)) for seed in range(3)] + sentences(3)
    total, count = 0.0, 0
    for row in rows_of(plain, documents, 24):
        ids = torch.tensor([row])
        with torch.no_grad():
            total += theirs(ids, labels=ids).loss.item() * (len(row) - 1)
        count += len(row) - 1
    scores = summary(plain, documents, 24, 4)
    assert scores["tokens"] == count
    assert scores["nll_base"] == pytest.approx(total / count, abs=1e-5)


def test_thoughts_are_those_of_the_slow_rollout(thinking):
    """Same keys, same thoughts: a document's windows think with fold_in(seed, document)."""
    documents = ["the cat saw nobody.", "the cat", "a small dog sat on his hat."]
    longest, key, nll, base = 9, jax.random.key(5), [], []
    for number, document in enumerate(documents):
        rows = rows_of(thinking, [document], longest)
        tokens = np.array([row + [0] * (longest - len(row)) for row in rows])
        mask = np.arange(longest) < np.array([[len(row)] for row in rows])
        inputs = (thinking.params, thinking.model, tokens, mask)
        drawn = reference.sample(
            *inputs, jax.random.fold_in(key, number), 2, 2, 1.0, masked_ids=(4,)
        )
        scores = reference.score(*inputs, drawn, talk=1, masked_ids=(4,))
        nll.append(-scores["talk_log_prob_BxTxRxA"][:, :-1, :, 0][mask[:, 1:]])
        base += list(-scores["base_log_prob_BxT"][:, :-1][mask[:, 1:]])
    assert len(rows) > 1  # of the last document
    scores = text_lib.score(thinking, documents, longest, 2, seed=5, thoughts=2)
    np.testing.assert_allclose(-scores.thinking_RxN.T, np.concatenate(nll), atol=1e-4)
    first = summary(thinking, documents, longest, 2, seed=5)
    assert first["tokens"] == len(base)
    assert first["nll_base"] == pytest.approx(np.mean(base), abs=1e-4)
    assert first["nll_thought"] == pytest.approx(np.concatenate(nll)[:, 0].mean(), abs=1e-4)
    assert abs(first["nll_thought"] - first["nll_base"]) > 1e-2


def test_thoughts_do_not_depend_on_batches(thinking):
    """Windows of several documents, of more than one length and in other company."""
    documents = [" ".join(sentences(n, n)) for n in (1, 3, 2)]
    expected = text_lib.score(thinking, documents, 9, 1)
    assert len(np.unique(expected.window_N)) > 8
    for batch_size in (3, 8):
        found = text_lib.score(thinking, documents, 9, batch_size)
        np.testing.assert_allclose(found.thinking_RxN, expected.thinking_RxN, atol=1e-5)
        assert found.summary() == {
            name: pytest.approx(value, rel=1e-6) for name, value in expected.summary().items()
        }
    more = text_lib.score(thinking, [*documents, "the cat saw nobody."], 9, 3)
    count = len(expected.plain_N)
    np.testing.assert_allclose(more.thinking_RxN[:, :count], expected.thinking_RxN, atol=1e-5)
    # The same tokens in another document, or in another window, are thought about anew.
    twice = text_lib.score(thinking, [documents[0], documents[0]], 9, 3)
    first, second = np.split(twice.thinking_RxN[0], 2)
    assert np.abs(first - second).max() > 1e-2


def test_padding_and_batches_change_nothing(plain):
    documents = [" ".join(sentences(n, n)) for n in (1, 5, 2, 4)]
    done = []
    expected = summary(plain, documents, 1000, 1)
    for batch_size in (3, 50):
        scores = summary(
            plain, documents, 1000, batch_size, progress=lambda n, of: done.append((n, of))
        )
        assert scores == expected | {"nll_base": pytest.approx(expected["nll_base"], abs=1e-6)}
    assert done == [(3, 4), (4, 4), (4, 4)]


def test_a_mesh_changes_nothing(folder, plain):
    """Parameters cut over 4 devices, windows divided among 2 groups of them."""
    spread = loading.load(str(folder), mesh=sharding.local_mesh(fsdp=2, tensor=2))
    kernel = spread.params["lm"]["layers"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    jax.tree.map(np.testing.assert_array_equal, spread.params, plain.params)
    texts = sentences(5)
    assert summary(spread, texts, 9, 2) == pytest.approx(summary(plain, texts, 9, 2))
    prompts = [[text] for text in texts]
    answers = [readings.answer_log_probs(m, prompts, ["the", "a"], 3, 0) for m in (spread, plain)]
    np.testing.assert_allclose(*answers, atol=1e-5)
    results = [generate(m, texts[:2], max_new_tokens=4) for m in (spread, plain)]
    assert results[0] == results[1]
    with pytest.raises(UserError, match="16 devices are requested, there are 8 here"):
        sharding.local_mesh(4, 4)
