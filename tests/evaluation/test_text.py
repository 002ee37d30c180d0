"""Scores against the slow rollout and against transformers, and what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.evaluation import text as text_lib
from fqs_jax.inference import readings
from fqs_jax.inference.generation import generate
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import decoder
from fqs_jax.runs import loading
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig
from tests import reference, tiny_models
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
    scores = text_lib.text_nll(plain, texts, 4, 2, 0)
    assert scores["tokens"] == short + 3 * windows
    assert scores["tokens_left_out"] == left
    assert scores["windows"] == 1 + windows
    whole = text_lib.text_nll(plain, texts, None, 2, 0)
    assert whole["tokens"] == short + long and whole["tokens_left_out"] == 0
    assert whole["seq_len"] == plain.model.max_seq_len
    assert "nll_thought" not in whole


def test_nothing_to_predict(plain):
    with pytest.raises(UserError, match="no token to predict"):
        text_lib.text_nll(plain, ["", ""], None, 2, 0)


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
    scores = text_lib.text_nll(plain, documents, 24, 4, 0)
    assert scores["tokens"] == count
    assert scores["nll_base"] == pytest.approx(total / count, abs=1e-5)


def test_thoughts_are_those_of_the_slow_rollout(thinking):
    """Same keys, same thoughts: batch i of windows, longest first, thinks with fold_in(seed, i)."""
    documents = ["the cat saw nobody.", "the cat", "a small dog sat on his hat."]
    rows = sorted(rows_of(thinking, documents, 9), key=len, reverse=True)
    longest, key, nll, base = len(rows[0]), jax.random.key(5), [], []
    for start in range(0, len(rows), 2):
        batch = rows[start : start + 2]
        tokens = np.array([row + [0] * (longest - len(row)) for row in batch])
        mask = np.arange(longest) < np.array([[len(row)] for row in batch])
        inputs = (thinking.params, thinking.model, tokens, mask)
        drawn = reference.sample(
            *inputs, jax.random.fold_in(key, start // 2), 2, 1, 1.0, masked_ids=(4,)
        )
        scores = reference.score(*inputs, drawn, talk=1, masked_ids=(4,))
        nll += list(-scores["talk_log_prob_BxTxRxA"][:, :-1, 0, 0][mask[:, 1:]])
        base += list(-scores["base_log_prob_BxT"][:, :-1][mask[:, 1:]])
    scores = text_lib.text_nll(thinking, documents, 9, 2, seed=5)
    assert scores["tokens"] == len(nll)
    assert scores["nll_base"] == pytest.approx(np.mean(base), abs=1e-4)
    assert scores["nll_thought"] == pytest.approx(np.mean(nll), abs=1e-4)
    assert abs(scores["nll_thought"] - scores["nll_base"]) > 1e-2


def test_padding_and_batches_change_nothing(plain):
    documents = [" ".join(sentences(n, n)) for n in (1, 5, 2, 4)]
    done = []
    expected = text_lib.text_nll(plain, documents, 1000, 1, 0)
    for batch_size in (3, 50):
        scores = text_lib.text_nll(
            plain, documents, 1000, batch_size, 0, lambda n, of: done.append((n, of))
        )
        assert scores == expected | {"nll_base": pytest.approx(expected["nll_base"], abs=1e-6)}
    assert done == [(3, 4), (4, 4), (4, 4)]


def test_answers_without_thoughts(plain):
    answers = ["a", "b", "."]
    ids = [plain.tokenizer.encode(answer)[0] for answer in answers]
    prompts = ["the cat", "a small dog sat on", "one"]
    scores = readings.answer_log_probs(plain, prompts, answers, 2, 0)
    np.testing.assert_allclose(np.exp(scores).sum(-1), 1.0, rtol=1e-5)
    for prompt, row in zip(prompts, scores, strict=True):
        tokens = jnp.array([[plain.tokenizer.bos_id, *plain.tokenizer.encode(prompt)]])
        logits = decoder.logits(plain.params["lm"], tokens, plain.model)[0, -1]
        np.testing.assert_allclose(row, jax.nn.log_softmax(logits[jnp.array(ids)]), atol=1e-4)


def test_answers_after_a_thought_at_the_last_token(thinking):
    answers, prompts = ["a", "b", "."], ["the cat", "a small dog sat"]
    tokenizer = thinking.tokenizer
    assert isinstance(tokenizer, tokenizer_lib.Tokenizer)
    ids = [tokenizer.encode(answer)[0] for answer in answers]
    rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    scores = readings.answer_log_probs(thinking, prompts, answers, 2, seed=3)
    longest, key = max(map(len, rows)), jax.random.key(3)
    for b, row in enumerate(rows):
        text = (np.array(row + [0] * (longest - len(row))), np.arange(longest) < len(row))
        model, last = (thinking.params, thinking.model), len(row) - 1
        drawn = []
        for k in range(2):
            opening = reference.start_and_thought(thinking.params, drawn, 100.0)
            hidden = reference.block_hidden(*model, *text, last, opening)
            logits = reference.thought_logits(thinking.params["lm"], hidden[-1], (4,))
            noise = reference.gumbel_noise(key, (b, last, 0, k), len(logits))
            drawn.append(int(np.argmax(logits + noise)))
        out = reference.rollout(*model, *text, last, drawn, 1, masked_ids=(4,))
        expected = reference.log_softmax(out.mixed_logits_AxV[0][ids])
        np.testing.assert_allclose(scores[b], expected, atol=1e-4)


def test_answers_do_not_depend_on_batches(thinking, monkeypatch):
    """Prompts of like length share a batch, cut to what holds them; each thinks as it would alone."""
    shapes = []
    compute = readings._answer_log_probs

    def recorded(params, batch, *arguments):
        shapes.append(batch["tokens"].shape)
        return compute(params, batch, *arguments)

    monkeypatch.setattr(readings, "_answer_log_probs", recorded)
    prompts = ["the cat", " ".join(sentences(16)), "one old king", "a small dog saw"]
    answers = ["a", "b", "."]
    scores = readings.answer_log_probs(thinking, prompts, answers, 2, seed=3)
    (_, longest), second = shapes
    assert longest > 64 and second == (2, 64)
    np.testing.assert_allclose(
        readings.answer_log_probs(thinking, prompts, answers, 1, seed=3), scores, atol=1e-5
    )


def test_a_mesh_changes_nothing(folder, plain):
    """Parameters cut over 4 devices, windows dealt out to 2 groups of them."""
    spread = loading.load(str(folder), mesh=sharding.local_mesh(fsdp=2, tensor=2))
    kernel = spread.params["lm"]["layers"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    jax.tree.map(np.testing.assert_array_equal, spread.params, plain.params)
    texts = sentences(5)
    assert text_lib.text_nll(spread, texts, 9, 2, 0) == pytest.approx(
        text_lib.text_nll(plain, texts, 9, 2, 0)
    )
    answers = [readings.answer_log_probs(m, texts, ["the", "a"], 3, 0) for m in (spread, plain)]
    np.testing.assert_allclose(*answers, atol=1e-5)
    results = [generate(m, texts[:2], max_new_tokens=4) for m in (spread, plain)]
    assert results[0] == results[1]
    with pytest.raises(UserError, match="16 devices are requested, there are 8 here"):
        sharding.local_mesh(4, 4)
