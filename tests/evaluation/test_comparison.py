"""The table that puts all models of a run side by side."""

import dataclasses
import itertools
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from fqs_jax import huggingface
from fqs_jax.data import corpus
from fqs_jax.data.problems import answer_tokens
from fqs_jax.data.problems.multiplication import Multiplication
from fqs_jax.data.problems.stories import Stories
from fqs_jax.evaluation import comparison, problems, stages_command, statistics
from fqs_jax.evaluation import text as text_lib
from fqs_jax.inference import readings
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError
from tests.chats import CHATML, write_bpe
from tests.tiny_runs import clock_config, hf_folder, save_stage, sentences

LOSSES = ("nll", "nll_easy", "nll_middle", "nll_hard")


@pytest.mark.parametrize("odds, share", [(2.0, 0.6), (0.5, 0.9), (3.0, 0.9)])
def test_fitted_temperature(odds, share):
    """Two answers at log-odds z, a share p of the time the likelier one is right: T = z / logit(p)."""
    right = (np.arange(1000) >= share * 1000).astype(int)
    log_probs = np.log(np.tile([odds / (1 + odds), 1 / (1 + odds)], (1000, 1)))
    expected = math.log(odds) / math.log(share / (1 - share))
    if expected < 0:  # no temperature swaps the answers: the flattest is best
        expected = math.exp(3)
    fitted = statistics.fit_temperature(log_probs, right)
    assert fitted == pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("error")
def test_a_broken_model_answers_nothing_right():
    """The place of the first NaN is no answer, although `argmax` says so."""
    log_probs = np.log(np.full((1, 4, 1, 3), 1 / 3))
    log_probs[0, 2:] = np.nan
    answers = problems.Answers(log_probs, np.zeros((4, 1), int), np.ones((1, 4)))
    assert answers.correct_RxN().tolist() == [[True, True, False, False]]
    accuracy, _, nll = problems.accuracy([answers])
    assert accuracy == 0.5 and math.isnan(nll)


def test_what_is_unknown_is_no_number_in_the_table():
    nan_row = comparison.Row("0", "base", nll=math.inf)
    table = stages_command._table(Path("W"), [nan_row])
    cells = [list(column.cells)[0] for column in table.columns]
    assert cells == ["0", "base", "0", *["-"] * 6, "0.00e+00"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run") / "W"
    config = clock_config({"data.clock.lengths": (1, 2)})
    for number in (0, 1):
        save_stage(root, config, number, seed=number)
    return root, config


@pytest.fixture(scope="module")
def rows(run):
    notes = []
    rows = comparison.compare(run[0], 2, note=notes.append)
    assert notes == ["base", "think-5-2"]
    return rows


def test_a_row_for_each_stage_and_the_scaled_base(rows):
    assert [(row.stage, row.steps) for row in rows] == [("0", 6), ("0", 6), ("1", 6)]
    assert [row.name.split(" at ")[0] for row in rows] == ["base", "base", "think-5-2"]
    for row in rows:
        assert 0 <= row.accuracy.low < row.accuracy.value < row.accuracy.high <= 1
        assert 0 < row.accuracy_error < 0.5
        assert 0 < row.nll < 20 and row.ms_per_token > 0


def test_a_temperature_changes_how_sure_the_base_is_and_not_what_it_answers(rows):
    base, scaled, _ = rows
    # Random weights know nothing: the fit makes seven answers about equally likely.
    assert scaled.temperature > 5 and scaled.nll == pytest.approx(math.log(7), abs=0.02)
    # Thirds are those of the base as it is, and so no longer in the order of their losses.
    assert np.mean([scaled.nll_easy, scaled.nll_middle, scaled.nll_hard]) == pytest.approx(
        scaled.nll, abs=0.02
    )
    assert scaled.name.startswith("base at temperature ") and base.temperature == 1
    same = {name: getattr(base, name) for name in (*LOSSES, "name", "temperature")}
    assert dataclasses.replace(scaled, **same) == base


def test_a_fit_that_stops_at_the_highest_temperature_says_so(rows):
    far = comparison._at_temperature(rows[0], 20.08, statistics.MAX_TEMPERATURE)
    near = comparison._at_temperature(rows[0], 1.234, statistics.MAX_TEMPERATURE)
    assert far.name == "base at temperature \u226520" and near.name == "base at temperature 1.23"


def test_only_a_model_without_thoughts_is_the_base(tmp_path):
    save_stage(tmp_path, clock_config({"data.clock.lengths": (1,)}), 1)
    assert [row.name for row in comparison.compare(tmp_path, 1)] == ["think-5-2"]


def test_a_run_on_problems_takes_no_text(run):
    with pytest.raises(UserError, match="held-out problems of its own; leave --text out"):
        comparison.compare(run[0], 1, ["some text"])
    with pytest.raises(UserError, match="which are no windows; leave --seq_len out"):
        comparison.compare(run[0], 1, seq_len=16)


def test_problems_are_read_as_many_at_once_as_asked(run, monkeypatch):
    sizes = []
    read = readings.answer_log_probs

    def counted(loaded, texts, choices, batch_size, seed):
        sizes.append(batch_size)
        return read(loaded, texts, choices, batch_size, seed)

    whole = comparison.compare(run[0], 1, timed=False)
    monkeypatch.setattr(readings, "answer_log_probs", counted)
    parts = comparison.compare(run[0], 1, timed=False, batch_size=5)
    assert set(sizes) == {5}
    for row, other in zip(parts, whole, strict=True):
        assert (row.accuracy, row.nll) == (other.accuracy, pytest.approx(other.nll, rel=1e-5))


def test_seeds_are_of_thoughts(run):
    plain, _, thinking = comparison.compare(run[0], 2, seed=1)
    again, _, same = comparison.compare(run[0], 2, seed=1)
    other, _, different = comparison.compare(run[0], 2, seed=0)
    assert plain.nll == again.nll == other.nll and thinking.nll == same.nll != different.nll


def test_difficulty_is_how_likely_the_first_model_finds_an_item():
    """Its own thirds ascend; another model's losses are averaged over the same items."""
    row = comparison.Row("0", "a", nll=3.5)
    first_N = np.array([5.0, 0.0, 3.0, 1.0, 4.0, 2.0])
    own = comparison._by_difficulty(row, first_N, first_N)
    assert (own.nll_easy, own.nll_middle, own.nll_hard) == (0.5, 2.5, 4.5)
    other = comparison._by_difficulty(row, np.array([1.0, 7.0, 2.0, 9.0, 1.0, 4.0]), first_N)
    assert (other.nll_easy, other.nll_middle, other.nll_hard) == (8.0, 3.0, 1.0)
    short = comparison._by_difficulty(row, first_N[:2], first_N[:2])
    assert (short.nll_easy, short.nll_middle) == (0.0, 5.0) and math.isnan(short.nll_hard)


def test_accuracy_is_over_held_out_items(run, monkeypatch):
    """A predictor that is right on every n-th test item, checked against hand counts."""
    root, config = run
    task, loaded = corpus.built_in_task(config.data, config.seed), loading.load(str(root), "1")
    answers = dict(task.problems("test"))
    assert len(answers) > 20

    def answer(model, texts, choices, batch_size, seed):
        shape = model.thought.rationales, len(texts), 1, len(choices)
        scores = np.full(shape, math.log(0.1 / 6))
        for r, (i, [prompt]) in itertools.product(range(shape[0]), enumerate(texts)):
            right = choices.index(answers[prompt])
            likeliest = right if i % 2 == 0 and r == 0 else (right + 1) % 7
            scores[r, i, 0, likeliest] = math.log(0.9)
        return scores + math.log(0.5)  # as likely is any other token

    monkeypatch.setattr(readings, "answer_log_probs", answer)
    accuracy, error, nll = problems.task_accuracy(loaded, task, thoughts=2)
    read = problems.read(loaded, task, "test", thoughts=2)
    assert problems.answering(read) == pytest.approx(0.5)
    lengths = [len(task.problems("test", n)) for n in task.lengths]
    shares = [math.ceil(n / 2) / n / 2 for n in lengths]  # of one thought in two
    assert accuracy == pytest.approx(np.mean(shares))
    # Over items: what is right after one thought of two counts 0.5, else 0.
    variances = [p * (0.5 - p) / n for p, n in zip(shares, lengths, strict=True)]
    assert error == pytest.approx(math.sqrt(sum(variances)) / 2)
    losses = [-p * math.log(0.9) - (1 - p) * math.log(0.1 / 6) for p in shares]
    assert nll == pytest.approx(np.mean(losses))


def test_an_answer_of_several_symbols_is_right_if_each_is_likeliest_after_the_true_ones(
    run, monkeypatch
):
    """A predictor that knows products to a certain place, checked against hand counts."""
    task = Multiplication(lengths=(1, 2))
    products = dict(task.problems("test"))

    def answer(_, texts, choices, batch_size, seed):
        scores = np.full((1, len(texts), len(texts[0]), len(choices)), math.log(0.2 / 9))
        for i, item in enumerate(texts):
            for place, text in enumerate(item):
                prompt, before = text.split(" =")
                digits = products[f"{prompt} ="].split()
                assert before.split() == digits[:place] and len(item) == len(digits)
                right = choices.index(digits[place])
                # Even items are known to the end, odd ones but for their last digit.
                known = i % 2 == 0 or place < len(digits) - 1
                scores[0, i, place, right if known else (right + 1) % 10] = math.log(0.8)
        return scores

    monkeypatch.setattr(readings, "answer_log_probs", answer)
    own = answer_tokens.AnswerTokens((), ())  # the run's tokenizer has other symbols
    monkeypatch.setattr(answer_tokens, "encode", lambda *_: ([], own))
    loaded = loading.load(str(run[0]), "0")
    accuracy, error, nll = problems.task_accuracy(loaded, task, thoughts=3)
    assert problems.answering(problems.read(loaded, task, "test")) == pytest.approx(1.0)
    sizes = [len(task.problems("test", n)) for n in task.lengths]
    shares = [math.ceil(n / 2) / n for n in sizes]
    assert accuracy == pytest.approx(np.mean(shares))
    variances = [p * (1 - p) / n for p, n in zip(shares, sizes, strict=True)]
    assert error == pytest.approx(math.sqrt(sum(variances)) / 2)
    sure, off = -math.log(0.8), -math.log(0.2 / 9)
    losses = [2 * n * sure + (1 - p) * (off - sure) for n, p in zip((1, 2), shares, strict=True)]
    assert nll == pytest.approx(np.mean(losses))


def test_a_task_with_answers_of_several_symbols_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison.timing, "ROUNDS", 1)
    config = clock_config(
        {
            "data.source": "multiplication",
            "data.multiplication.lengths": (1,),
            "data.num_documents": 20,
        }
    )
    for number in (0, 1):
        save_stage(tmp_path, config, number, seed=number)
    base, scaled, thinking = comparison.compare(tmp_path, 1)
    assert (base.kind, thinking.kind) == ("base", "thinking") and 0 < thinking.nll < math.inf
    # Nothing is known: the fit makes all digits about equally likely, at both places.
    assert scaled.nll == pytest.approx(2 * math.log(10), rel=0.05) and scaled.nll < base.nll


def test_a_task_with_more_splits_has_a_row_for_each(tmp_path, monkeypatch):
    """A model with its own tokenizer, and a stage of it; the predictor knows `test` alone."""
    words = tmp_path / "words"
    texts = Stories().documents(2000)
    size = write_bpe(words, texts, ["<s>"], CHATML, 800, digits=True, bos_token="<s>")
    model = ModelConfig(
        vocab_size=size,
        width=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=8,
        max_seq_len=128,
    )
    params = decoder.init(model, jax.random.key(0))
    huggingface.export(params, model, tmp_path / "hf", words)
    few = {"data.stories.test_share": 0.01, "data.stories.validation_share": 0.01}
    given = {"init_from": str(tmp_path / "hf"), "data.source": "stories"} | few
    config = clock_config(given | {"thought.start_text": " :", "thought.end_text": " ="})
    save_stage(tmp_path / "W", config, 1)
    task = Stories(test_share=0.01, validation_share=0.01)
    known = dict(task.problems("test"))
    asked = []

    def answer(_, texts, choices, batch_size, seed):
        asked.append([prompt for [prompt] in texts])
        scores = np.full((1, len(texts), 1, len(choices)), math.log(0.1 / 20))
        for i, [prompt] in enumerate(texts):
            scores[0, i, 0, choices.index(known.get(prompt, "zero"))] = math.log(0.9)
        return scores

    monkeypatch.setattr(readings, "answer_log_probs", answer)
    rows = comparison.compare(tmp_path / "W", 1, timed=False)
    assert [(row.stage, row.split) for row in rows] == [
        ("init", "test"),
        ("init", "test"),  # at a temperature
        ("init", "new_wording"),
        ("1", "test"),
        ("1", "new_wording"),
    ]
    assert [row.name for row in rows if row.stage == "1"] == ["think-5-2", "think-5-2: new_wording"]
    zeros = list(known.values()).count("zero") / len(known)
    for row in rows:
        assert row.accuracy.value == pytest.approx(1 if row.split == "test" else zeros)
    test, new = (row for row in rows if row.stage == "1")
    assert test.nll == pytest.approx(-math.log(0.9))
    assert new.nll > 2 and new.nll_easy <= new.nll_hard
    told = [
        [prompt for prompt, _ in task.problems(s)] for s in ("test", "validation", "new_wording")
    ]
    assert asked == [told[0], told[1], told[2], told[0], told[2]]
    shown = stages_command._table(Path("W"), rows)
    assert list(shown.columns[1].cells)[2] == "base: new_wording"


def test_text_runs_start_from_an_imported_model(tmp_path):
    config = clock_config({"init_from": str(hf_folder(tmp_path / "hf")), "data.source": "text"})
    save_stage(tmp_path / "W", config, 0)
    with pytest.raises(UserError, match="give held-out text with --text"):
        comparison.compare(tmp_path / "W", 1)
    texts = sentences(3)
    base, scaled, trained = comparison.compare(tmp_path / "W", 1, texts)
    assert (base.stage, base.name, base.steps) == ("init", "base", 0)
    assert (trained.stage, trained.name, trained.steps) == ("0", "base", 6)
    for row in (base, trained):
        expected = text_lib.score(loading.load(str(tmp_path / "W"), row.stage), texts).summary()
        assert row.nll == pytest.approx(expected["nll_base"], rel=1e-6)
        assert math.isnan(row.accuracy.value)
    assert base.nll_easy < base.nll_middle < base.nll_hard
    # Random weights are too sure of themselves: warmer fits text it was not fitted on.
    assert scaled.temperature > 1.2
    assert math.log(2) < scaled.nll < base.nll
    assert (scaled.stage, scaled.ms_per_token) == ("init", base.ms_per_token)


def test_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match="has no trained stage; train with .*--workdir="):
        comparison.compare(tmp_path, 1)
