"""Likelihoods of option texts, against transformers and the lm-evaluation-harness on tiny random models."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.evaluation.tasks import choices, items, option_texts, piqa
from fqs_jax.evaluation.tasks.asking import Settings
from fqs_jax.evaluation.tasks.items import Cloze
from fqs_jax.inference import continuations
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import ThoughtConfig
from tests import benchmark_files, tiny_models
from tests.tiny_runs import hf_folder

ASKED = [
    Cloze("the cat", (" saw the mat", " sat", " saw"), 1, delimiter=""),  # one begins another
    Cloze("one old ki", ("ng sat on a tree", "nd"), 0, delimiter=""),  # joined at the border
    Cloze("the king ", ("saw nobody", "ran"), 1, delimiter=""),  # the blank goes with the word
    Cloze("Who saw it?", ("the dog", "Tom", "the dog", "nobody caf\u00e9"), 2),  # two alike
    Cloze("", ("the cat", "a dog"), 0, delimiter=""),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("texts") / "model")


@pytest.fixture(scope="module")
def loaded(folder):
    return loading.load(str(folder))


@pytest.fixture(scope="module")
def plain(loaded):
    return option_texts.evaluate(loaded, ASKED, Settings(batch_size=4)).plain


def sums(decisions, n, r=0):
    """The log-likelihoods of the options of an item, after its thought r."""
    return decisions.log_probs_NxRxDxA[n, r, 0, : len(ASKED[n].options)]


def test_log_likelihoods_are_those_of_transformers(folder, plain):
    """One text at a time, whole, and cut where the question without blanks at its end would end."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the cat").input_ids[0] == tokenizer.bos_token_id
    for n, item in enumerate(ASKED):
        start = len(tokenizer(item.prompt.rstrip()).input_ids)
        expected, lengths = [], []
        for option in item.options:
            ids = tokenizer(item.prompt + item.delimiter + option, return_tensors="pt").input_ids
            with torch.no_grad():
                log_p = model(ids).logits.double().log_softmax(-1)[0]
            read = range(start, ids.shape[1])
            expected.append(sum(float(log_p[t - 1, ids[0, t]]) for t in read))
            lengths.append(len(read))
        np.testing.assert_allclose(sums(plain.total, n), expected, atol=1e-4)
        characters = [len(option) for option in item.options]
        np.testing.assert_allclose(
            sums(plain.by_characters, n), np.divide(expected, characters), atol=1e-4
        )
        np.testing.assert_allclose(
            sums(plain.by_tokens, n), np.divide(expected, lengths), atol=1e-4
        )
        assert plain.total.target_NxD[n] == item.right


def test_of_options_that_are_alike_the_first_counts(plain):
    found = sums(plain.total, 3)
    assert found[0] == found[2] != found[1]


@pytest.mark.exhaustive
def test_tasks_are_those_of_the_harness(folder, loaded, tmp_path):
    """Its own evaluator, model and definitions of tasks, on files in the original formats."""
    pytest.importorskip("lm_eval", reason="pip install 'fqs_jax[eval]'")
    pytest.importorskip("accelerate", reason="the harness's own model needs it")
    from benchmarks import harness_equality

    files = {
        name: str(path)
        for name, path in benchmark_files.write_all(tmp_path).items()
        if name in harness_equality.TASKS
    }
    theirs = harness_equality.harness(str(folder), files, None, 4)
    assert [len(found) for found in theirs.values()] == [3, 2, 1]
    for name, file in files.items():
        ours = harness_equality.ours(loaded, name, file, None, 4)
        worst, other = harness_equality.compare(theirs[name], ours)
        assert worst < 1e-4 and other == 0
        moved = [item._replace(log_likelihoods=item.log_likelihoods + 1, acc=0.5) for item in ours]
        worst, other = harness_equality.compare(theirs[name], moved)
        assert worst > 0.9 and other == len(ours)  # it can fail


@pytest.fixture(scope="module")
def thinking(loaded):
    params = tiny_models.random_params(loaded.model)
    thought = ThoughtConfig(n_ahead=5, rationales=1, masked_ids=(4,))
    params = {"lm": loaded.params["lm"], "thought": params["thought"]}
    return dataclasses.replace(loaded, params=params, thought=thought)


def test_options_after_thoughts(thinking, plain):
    """Each option in a request of its own, as the adapter of the harness scores them."""
    settings = Settings(thought_seeds=2, seed=3, batch_size=4)
    found = option_texts.evaluate(thinking, ASKED, settings)
    assert found.thinking is not None
    for n in range(len(ASKED)):
        np.testing.assert_allclose(sums(found.plain.total, n), sums(plain.total, n), atol=1e-4)
        assert np.abs(sums(found.thinking.total, n) - sums(plain.total, n)).max() > 1e-3
        assert np.abs(sums(found.thinking.total, n) - sums(found.thinking.total, n, 1)).max() > 1e-4
    # The number of each request is that of its item, so its one thought is the first of the two.
    requests = [
        continuations.encode(thinking.tokenizer, a.prompt, a.delimiter + a.options[1])
        for a in ASKED
    ]
    alone, _ = continuations.score(thinking, requests, 4, seed=3)
    scores = [sums(found.thinking.total, n)[1] for n in range(len(ASKED))]
    np.testing.assert_allclose([score.log_prob for score in alone], scores, atol=1e-4)


def test_lengths_belong_to_the_items_that_fit(loaded, plain):
    """The first item is left out; the others keep their own lengths."""
    long = Cloze("the cat saw the mat " * 4, ("a", "b"), 0)
    asked = [long, *ASKED[:2], long, *ASKED[2:]]
    found = option_texts.evaluate(loaded, asked, Settings(batch_size=4, seq_len=30))
    assert found.too_long == 2
    for expected, part in zip(plain, found.plain, strict=True):
        np.testing.assert_allclose(part.log_probs_NxRxDxA, expected.log_probs_NxRxDxA, atol=1e-4)
        np.testing.assert_array_equal(part.target_NxD, expected.target_NxD)
    with pytest.raises(UserError, match="no item fits in 3 tokens"):
        option_texts.evaluate(loaded, asked, Settings(seq_len=3))


def test_a_broken_model_is_named(loaded):
    broken = dataclasses.replace(
        loaded,
        params={"lm": {**loaded.params["lm"], "final_norm": {"scale": jnp.full(16, jnp.nan)}}},
    )
    with pytest.raises(UserError, match="not finite, first in item 1"):
        option_texts.evaluate(broken, ASKED, Settings(batch_size=4))


def test_choices_of_a_file_stand_behind_the_prompt_as_written(tmp_path):
    lines = [{"prompt": "a", "choices": [" b", " cd"], "answer": " cd"}]
    path = benchmark_files.write_lines(tmp_path / "a.jsonl", lines)
    assert items.read(choices.CLOZE, str(path)) == [Cloze("a", (" b", " cd"), 1, "")]
    files = benchmark_files.write_all(tmp_path)
    first = items.read(piqa.CLOZE, str(files["piqa"]))[0]
    assert first == Cloze("Question: find a hat\nAnswer:", ("look at the mat ", "ask nobody"), 1)
