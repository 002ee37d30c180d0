"""Problems of which only the answers are predicted, against the words of the documents."""

from __future__ import annotations

import numpy as np
import pytest

from fqs_jax.data import corpus, marked_tokens
from fqs_jax.data.sources.specification import Documents
from fqs_jax.runtime.errors import UserError
from tests.data.problems.test_task import asked
from tests.tiny_runs import clock_config

FORMS = ("worked", "direct", "chatter", "unanswered")


def data_of(task: str, **changes):
    data = clock_config({"data.source": task, "data.learn": "answers", **changes}).data
    for form in FORMS:
        data[task][form] = 1.0
    return data


def behind_the_question(text: str) -> int:
    """The number of words behind the first "=": each is one token here."""
    words = text.split()
    return len(words) - 1 - words.index("=")


@pytest.mark.parametrize("task", list(corpus.TASKS))
def test_what_follows_the_question_is_predicted(task, tmp_path):
    """Every task's question ends in its first "=", in all four forms of documents."""
    data = data_of(task)
    tokenizer = corpus.train_tokenizer(data, 0, tmp_path)
    [(source, _)] = corpus.sources(data, 0)
    questions = {asked(question) for question, _ in corpus.built_in_task(data, 0).problems("train")}
    lengths = set()
    for index in range(len(source)):
        text = source[index]
        ids, learned = marked_tokens.split(source.tokens(index, tokenizer))
        opening = list(tokenizer.opening)
        assert ids.tolist() == [*opening, *tokenizer.encode(text)]
        count = behind_the_question(text)
        assert learned.tolist() == [False] * (len(ids) - count) + [True] * count
        lengths.add(count > 0)
        assert asked(" ".join(text.split()[: len(text.split()) - count])) in questions
    assert lengths == {True, False}  # some questions have no answer


@pytest.mark.parametrize("rows", corpus.ROWS)
def test_rows_have_targets(rows, tmp_path):
    """Each real token behind a question is a target, and only those, in rows of both kinds."""
    data = data_of("clock", **{"data.rows": rows, "data.seq_len": 24})
    tokenizer = corpus.train_tokenizer(data, 0, tmp_path)
    batch = corpus.dataset(data, tokenizer, 16, 0, 0).batch(0)
    assert "target" in corpus.extra_keys(data)
    equals, marker = (tokenizer.encode(sign)[0] for sign in "=:")
    segments = batch.get("segment", batch["mask"].astype(int))
    for tokens, targets, segment in zip(batch["tokens"], batch["target"], segments, strict=True):
        for number in set(segment[segment > 0]):
            inside = np.flatnonzero(segment == number)
            # A row may begin within a document: then its question may be in the row before.
            if rows == "pack" and number == segment[0]:
                continue
            signs = np.flatnonzero(tokens[inside] == equals)
            first = signs[0] if len(signs) else len(inside)
            assert targets[inside].tolist() == [place > first for place in range(len(inside))]
        assert not targets[segment == 0].any()
    assert marker in batch["tokens"][batch["target"]]  # the work is predicted too


def test_what_is_refused():
    with pytest.raises(UserError, match="data.learn is 'work'; choose from all, answers"):
        corpus.sources(data_of("clock", **{"data.learn": "work"}), 0)
    text = clock_config({"data.source": "text", "data.text": "x", "data.learn": "answers"}).data
    with pytest.raises(UserError, match="data.learn=answers is for built-in tasks"):
        corpus.sources(text, 0)


def test_records_of_earlier_versions_learn_everything():
    data = clock_config().data
    data.unlock()
    del data.learn
    [(source, _)] = corpus.sources(data, 0)
    assert isinstance(source, Documents) and corpus.extra_keys(data) == ()


def test_documents_stay_texts():
    source = marked_tokens.Answers(Documents(["1 +1 = 2", "2 +1 ="]), "=")
    assert [source[i] for i in range(len(source))] == ["1 +1 = 2", "2 +1 ="]
    assert source.settings != Documents(["1 +1 = 2", "2 +1 ="]).settings
