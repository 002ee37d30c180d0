"""The gap of a student to its teacher: measured, resampled, judged; and on models that were trained."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.stage import row
from fqs_jax.evaluation import text as text_lib
from fqs_jax.evaluation import watch
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import loading, source
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupts
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.training import loop, start
from tests import tiny_models
from tests.tiny_runs import clock_config, hf_folder, sentences


def losses(rng, documents, gap, spread=0.1):
    """Losses of documents of all lengths, each with its own gap around the given one."""
    tokens_D = rng.integers(20, 400, documents)
    gap_D = rng.normal(gap, spread, documents)
    return watch.Losses(tokens_D, tokens_D * 2.0, tokens_D * (2.0 + gap_D))


def test_a_gap_weighs_documents_by_their_tokens():
    then = watch.Losses(np.array([1, 3] * 4), np.array([1.0, 6.0] * 4), np.array([2.0, 7.5] * 4))
    assert then.gap == pytest.approx(2.5 / 4)
    fresh = dataclasses.replace(then, student_D=then.student_D + 0.5 * then.tokens_D)
    verdict = watch.judge(fresh, then, 0.01)
    assert verdict.drift.value == pytest.approx(0.5) and verdict.gap_then == pytest.approx(0.625)
    assert (verdict.documents, verdict.documents_then, verdict.tokens) == (8, 8, 16)
    assert verdict.teacher_nll == pytest.approx(7 / 4)
    assert verdict.student_nll == pytest.approx(9.5 / 4 + 0.5)
    assert verdict.teacher_nll_then == pytest.approx(7 / 4)
    assert verdict.student_nll_then == pytest.approx(9.5 / 4)
    assert verdict.rise.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    "drift, spread, tolerance, verdict, unsure",
    [
        (0.3, 0.1, 0.01, "retrain", False),
        (0.3, 0.1, 0.5, "keep", False),
        (0.0, 0.001, 0.01, "keep", False),
        (0.02, 0.1, 0.01, "keep", True),  # it cannot be told from 0, nor from a lot
        (-0.3, 0.1, 0.01, "keep", False),  # closer to its teacher than ever
    ],
)
def test_verdicts(drift, spread, tolerance, verdict, unsure):
    rng = np.random.default_rng(0)
    then, fresh = losses(rng, 40, 0.05, spread), losses(rng, 40, 0.05 + drift, spread)
    result = watch.judge(fresh, then, tolerance)
    assert (result.verdict, result.unsure) == (verdict, unsure)
    assert result.reason == ("gap" if verdict == "retrain" else "")
    assert result.drift.low < result.drift.value < result.drift.high
    assert result == watch.judge(fresh, then, tolerance)  # no luck in it


@pytest.mark.parametrize(
    "teacher_rise, student_rise, verdict, reason, unsure",
    [
        (2.0, 2.0, "retrain", "loss", False),  # no gap between two that know nothing
        (2.0, 1.5, "retrain", "loss", False),
        (1.5, 2.0, "retrain", "loss", False),  # a teacher like this one is of no help
        (0.0, 2.0, "retrain", "gap", False),
        (2.0, 0.0, "keep", "", False),  # the student is as good as ever
        (0.3, 0.3, "keep", "", False),  # harder text of the same kind
        (0.5, 0.5, "keep", "", True),
    ],
)
def test_a_loss_that_rises(teacher_rise, student_rise, verdict, reason, unsure):
    rng = np.random.default_rng(0)
    then, fresh = losses(rng, 40, 0.05, 0.001), losses(rng, 40, 0.05, 0.001)
    rises = {"teacher_D": teacher_rise, "student_D": student_rise}
    rises_D = rng.normal(0, 0.1, 40) * fresh.tokens_D  # what makes documents hard, for both
    changed = {n: getattr(fresh, n) + r * fresh.tokens_D + rises_D for n, r in rises.items()}
    result = watch.judge(dataclasses.replace(fresh, **changed), then, 0.01)
    assert (result.verdict, result.reason, result.unsure) == (verdict, reason, unsure)
    assert result.rise.value == pytest.approx(student_rise, abs=0.1)
    assert result.rise.low < result.rise.value < result.rise.high


def test_a_student_that_is_worse_alone_within_a_wide_tolerance():
    rng = np.random.default_rng(0)
    then, fresh = losses(rng, 40, 0.05, 0.001), losses(rng, 40, 0.05, 0.001)
    worse = dataclasses.replace(fresh, student_D=fresh.student_D + 2.0 * fresh.tokens_D)
    result = watch.judge(worse, then, tolerance=5.0)
    assert (result.verdict, result.reason) == ("retrain", "student")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tolerances_are_finite(value):
    then = losses(np.random.default_rng(0), 9, 0)
    with pytest.raises(UserError, match="^tolerance must be a finite number"):
        watch.judge(then, then, value)
    with pytest.raises(UserError, match="loss_tolerance must be a finite number"):
        watch.judge(then, then, 0.01, value)


def test_intervals_cover_the_true_drift_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(150):
        result = watch.judge(losses(rng, 25, 0.35), losses(rng, 25, 0.05), 0.01)
        covered += result.drift.low <= 0.3 <= result.drift.high
    assert 0.89 < covered / 150 <= 0.99


def test_more_documents_narrow_the_interval():
    rng = np.random.default_rng(0)
    few, many = (watch.judge(losses(rng, n, 0.3), losses(rng, n, 0), 0.01) for n in (20, 500))
    ratio = (few.drift.high - few.drift.low) / (many.drift.high - many.drift.low)
    assert 3 < ratio < 8  # about the root of 25


@pytest.mark.parametrize("fresh, then, name", [(7, 9, "fresh text"), (9, 7, "training-time text")])
def test_too_few_documents(fresh, then, name):
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=f"the {name} has too few documents .*, 7; give at least 8"):
        watch.judge(losses(rng, fresh, 0), losses(rng, then, 0), 0.01)


def test_spread():
    texts = [str(i) for i in range(10)]
    assert watch.spread(texts, 20) == texts
    assert watch.spread(texts, 4) == ["0", "2", "5", "7"]
    assert watch.spread(["a", " ", "b"], 3) == ["a", "b"]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return loading.load(str(hf_folder(tmp_path_factory.mktemp("hf") / "student")))


@pytest.fixture(scope="module")
def teacher(student) -> Loaded:
    model = tiny_models.model_config(vocab_size=student.tokenizer.vocab_size, max_seq_len=32)
    params = tiny_models.random_params(model)
    thought = ThoughtConfig(n_ahead=4, rationales=1)
    return Loaded(params, model, student.tokenizer, thought, student.source, "teacher")


def test_losses_are_those_of_each_document_alone(teacher, student):
    documents = ["the cat", "", " ".join(sentences(3)), "a big tree"]
    told = []
    measured = watch.measure(teacher, student, documents, progress=lambda *done: told.append(done))
    assert told == [(3, 6), (6, 6)]
    kept = [document for document in documents if document]
    for i, document in enumerate(kept):
        alone = text_lib.score(student, [document], 32).summary()  # the teacher's, shorter, window
        assert measured.tokens_D[i] == alone["tokens"]
        assert measured.student_D[i] / alone["tokens"] == pytest.approx(alone["nll_base"], rel=1e-5)
    scores = text_lib.score(teacher, documents, 32, 8, 0)
    assert measured.teacher_D.sum() == pytest.approx(-scores.thinking_RxN.sum(), rel=1e-5)
    assert measured.teacher_D.sum() != pytest.approx(-scores.plain_N.sum(), rel=1e-3)


def test_models_that_cannot_be_compared(teacher, student, tmp_path):
    with pytest.raises(UserError, match="does not think; name a thinking stage"):
        watch.measure(student, teacher, ["the cat"])
    tokenizer = dataclasses.replace(student.tokenizer, add_bos=False)
    with pytest.raises(UserError, match="different tokenizers"):
        watch.measure(teacher, dataclasses.replace(student, tokenizer=tokenizer), ["the cat"])
    broken = jax.tree.map(lambda leaf: leaf * np.nan, student.params)
    with pytest.raises(UserError, match="the loss of student is not finite"):
        watch.measure(teacher, dataclasses.replace(student, params=broken), ["the cat"])


# --- Trained models ---


def here(count, seed=0):
    """Documents like those that both models were trained on."""
    return [" ".join(sentences(4, 1000 * seed + i)) for i in range(count)]


def elsewhere(count, seed=0):
    """Documents that only the teacher still knows: the same letters in other words."""
    return [document[::-1] for document in here(count, 100 + seed)]


def nowhere(count, seed=0):
    """Documents that neither model knows: the same letters in random order."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.permutation(list(document))) for document in here(count, 200 + seed)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A teacher trained to think on two kinds of text, and a student trained further on one of them."""
    place = tmp_path_factory.mktemp("watch")
    for name, documents in {
        "both.jsonl": here(60) + elsewhere(60),
        "here.jsonl": here(60),
    }.items():
        lines = [json.dumps({"text": text}) for text in documents]
        (place / name).write_text("\n".join(lines))
    folder, root = hf_folder(place / "hf"), place / "W"
    for number in range(3):
        config = clock_config(
            {
                "init_from": str(folder),
                "data.source": "text",
                "data.text": str(place / "both.jsonl"),
                "data.seq_len": 32,
                "batch_size": 8,
                "log_every": 50,
                "checkpoint_every": 1000,
                "thought.rationales": 1,
                "stage_0.steps": 150,
                "stage_0.learning_rate": 2e-2,
                "stage_1.name": "teacher",
                "stage_1.steps": 5,
                "stage_1.n_ahead": 4,
                "stage_1.n_ahead_talk": 1,
                "stage_1.learning_rate": 1e-4,
            }
        )
        own = (f"data.text={place / 'here.jsonl'}",)
        config.stage_2 = row(
            "student", "next_token", start=0, learning_rate=1e-2, steps=100, settings=own
        )
        del config.stage_3
        model, tokenizer = source.prepare(root, config)
        run = start.Run(
            root, config, tokenizer, sharding.single_device(), Interrupts(), lambda _: ""
        )
        loop.run_stage(run, resolve.find(resolve.recipes(config, model), str(number)))
    return root


def test_the_text_of_training_is_that_of_the_stage(root):
    assert watch.training_text(root, 2, 500) == here(60)
    assert watch.training_text(root, 1, 500) == here(60) + elsewhere(60)
    assert watch.training_text(root, 2, 10) == here(60)[::6]


def test_a_student_is_kept_on_text_it_was_trained_for_and_not_on_text_from_elsewhere(root):
    teacher, student = (loading.load(str(root), stage) for stage in ("1", "student"))
    then = watch.measure(teacher, student, watch.training_text(root, 2, 40))
    known, foreign, foreign_to_both = (
        watch.judge(watch.measure(teacher, student, text(40, seed=7)), then, 0.05)
        for text in (here, elsewhere, nowhere)
    )
    print(known, foreign, foreign_to_both, sep="\n")
    assert known.verdict == "keep" and known.drift.high < 0.2 and known.rise.high < 0.5
    assert (foreign.verdict, foreign.reason) == ("retrain", "gap") and foreign.drift.low > 0.5
    # It is the student that got worse: its teacher does as well on both.
    assert foreign.teacher_nll < known.teacher_nll + 1 < foreign.student_nll
    assert (foreign_to_both.verdict, foreign_to_both.reason) == ("retrain", "loss")
    assert foreign_to_both.teacher_nll > known.teacher_nll + 1
    # And so it is where the gap says nothing: a student as good as this teacher.
    fresh, same = (
        dataclasses.replace(measured, student_D=measured.teacher_D)
        for measured in (watch.measure(teacher, student, nowhere(40, seed=7)), then)
    )
    no_gap = watch.judge(fresh, same, 0.05)
    assert (no_gap.verdict, no_gap.reason, no_gap.drift.value) == ("retrain", "loss", 0)
