"""Log-probabilities of answers, against single forward passes and the slow rollout."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.problems.clock import Clock
from fqs_jax.data.problems.stories import Stories
from fqs_jax.inference import readings
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import decoder
from fqs_jax.runs import loading
from fqs_jax.thinking.config import ThoughtConfig
from tests import reference, tiny_models
from tests.chats import CHATML, write_bpe
from tests.tiny_runs import hf_folder, sentences

THOUGHT = ThoughtConfig(n_ahead=5, rationales=1, masked_ids=(4,))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return loading.load(str(hf_folder(tmp_path_factory.mktemp("hf") / "model", "mistral")))


@pytest.fixture(scope="module")
def thinking(plain) -> Loaded:
    """A random thinking model of its own, with the tokenizer of the folder."""
    model = tiny_models.model_config(vocab_size=plain.tokenizer.vocab_size)
    params = tiny_models.random_params(model)
    return Loaded(params, model, plain.tokenizer, THOUGHT, plain.source, "thinking")


def test_answers_without_thoughts(plain):
    answers = ["a", "s", "o"]
    ids = [plain.tokenizer.encode(answer)[0] for answer in answers]
    prompts = ["the cat", "a small dog sat on", "one"]
    [scores] = readings.answer_log_probs(plain, [[prompt] for prompt in prompts], answers, 2, 0)
    for prompt, [row] in zip(prompts, scores, strict=True):
        tokens = jnp.array([[plain.tokenizer.bos_id, *plain.tokenizer.encode(prompt)]])
        logits = decoder.logits(plain.params["lm"], tokens, plain.model)[0, -1]
        np.testing.assert_allclose(row, jax.nn.log_softmax(logits)[jnp.array(ids)], atol=1e-4)


def test_answers_after_a_thought_at_the_last_token(thinking):
    answers, prompts = ["a", "s", "o"], ["the cat", "a small dog sat"]
    tokenizer = thinking.tokenizer
    assert isinstance(tokenizer, tokenizer_lib.Tokenizer)
    ids = [tokenizer.encode(answer)[0] for answer in answers]
    rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    texts = [[prompt] for prompt in prompts]
    scores = readings.answer_log_probs(
        thinking.with_thought(rationales=2), texts, answers, 2, seed=3
    )
    longest, key = max(map(len, rows)), jax.random.key(3)
    for r, (b, row) in itertools.product(range(2), enumerate(rows)):
        text = (np.array(row + [0] * (longest - len(row))), np.arange(longest) < len(row))
        model, last = (thinking.params, thinking.model), len(row) - 1
        drawn = []
        for k in range(2):
            opening = reference.start_and_thought(thinking.params, drawn, 100.0)
            hidden = reference.block_hidden(*model, *text, last, opening)
            logits = reference.thought_logits(thinking.params["lm"], hidden[-1], (4,))
            noise = reference.gumbel_noise(key, (b, last, r, k), len(logits))
            drawn.append(int(np.argmax(logits + noise)))
        out = reference.rollout(*model, *text, last, drawn, 1, masked_ids=(4,))
        expected = reference.log_softmax(out.mixed_logits_AxV[0])[ids]
        np.testing.assert_allclose(scores[r, b, 0], expected, atol=1e-4)


def test_answers_do_not_depend_on_batches(thinking, monkeypatch):
    """Prompts of like length share a batch, cut to what holds them; each thinks as it would alone."""
    shapes = []
    compute = readings._log_probs

    def recorded(params, batch, *arguments):
        shapes.append(batch["tokens"].shape)
        return compute(params, batch, *arguments)

    monkeypatch.setattr(readings, "_log_probs", recorded)
    prompts = ["the cat", " ".join(sentences(16)), "one old king", "a small dog saw"]
    texts, answers = [[prompt] for prompt in prompts], ["a", "s", "o"]
    scores = readings.answer_log_probs(thinking, texts, answers, 2, seed=3)
    (_, longest), second = shapes
    assert longest > 64 and second == (2, 64)
    np.testing.assert_allclose(
        readings.answer_log_probs(thinking, texts, answers, 1, seed=3), scores, atol=1e-5
    )


@pytest.mark.exhaustive
def test_texts_that_continue_one_another_share_a_row(thinking, monkeypatch):
    rows = []
    read = readings.read

    def recorded(loaded, chosen, *arguments):
        rows.append(len(chosen))
        return read(loaded, chosen, *arguments)

    monkeypatch.setattr(readings, "read", recorded)
    answers, growing = ["a", "s", "o"], ["the cat", "the cat saw", "the cat saw nobody"]
    together = readings.answer_log_probs(thinking, [growing], answers, 2, seed=3)
    for place, text in enumerate(growing):
        alone = readings.answer_log_probs(thinking, [[text]], answers, 2, seed=3)
        np.testing.assert_allclose(together[:, :, place], alone[:, :, 0], atol=1e-5)
    apart = readings.answer_log_probs(thinking, [["a big tree", "the cat saw"]], answers, 2, seed=3)
    np.testing.assert_allclose(apart[:, :, 1], together[:, :, 1], atol=1e-5)
    assert rows == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("source", ["clock", "stories"])
def test_answers_of_another_tokenizer_are_those_of_whole_sequences(tmp_path, source):
    """Byte-level BPE that keeps figures apart from their spaces: all tokens of an answer are scored."""
    task = {"clock": Clock(lengths=(2,)), "stories": Stories()}[source]
    texts = [*Stories().documents(2000), *Clock().documents(200)]
    size = write_bpe(tmp_path, texts, ["<s>"], CHATML, 800, digits=True, bos_token="<s>")
    tokenizer = tokenizer_lib.load(tmp_path)
    model = tiny_models.model_config(vocab_size=size)
    params = tiny_models.random_params(model)
    loaded = Loaded(params, model, tokenizer, None, tmp_path, "plain")
    prompts = [prompt for prompt, _ in task.problems("test")[:3]]
    [scores] = readings.answer_log_probs(
        loaded, [[prompt, f"{prompt} {task.answers[3]}"] for prompt in prompts], task.answers, 2, 0
    )
    assert scores.shape == (3, 2, len(task.answers))
    for i, prompt in enumerate(prompts):
        for place, text in enumerate([prompt, f"{prompt} {task.answers[3]}"]):
            start = [*tokenizer.opening, *tokenizer.encode(text)]
            sums = []
            for answer in task.answers:
                whole = [*tokenizer.opening, *tokenizer.encode(f"{text} {answer}")]
                assert whole[: len(start)] == start
                sums.append(_log_prob(loaded, whole, len(start)))
            np.testing.assert_allclose(
                jax.nn.log_softmax(scores[i, place]), jax.nn.log_softmax(np.array(sums)), atol=1e-4
            )


def _log_prob(loaded: Loaded, ids: list[int], begin: int) -> float:
    """Of the ids from `begin` on, one forward pass of the text padded to 64 tokens."""
    tokens = jnp.array([ids + [0] * (64 - len(ids))])
    logits = _logits(loaded.params["lm"], tokens, loaded.model)[0]
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return float(sum(log_probs[t - 1, ids[t]] for t in range(begin, len(ids))))


@functools.partial(jax.jit, static_argnames="model")
def _logits(lm, tokens, model):
    return decoder.logits(lm, tokens, model)
