"""The ids that are read at each position: published lists, the walk along an answer, shared rows."""

import types

import pytest

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data import tokenizer_training
from fqs_jax.evaluation.tasks import questions
from fqs_jax.evaluation.tasks.items import Item, lettered
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import sentences

# The lists of the released evaluation.
MISTRAL_DIGITS = {28740, 28750, 28770, 28781, 28782, 28784, 28787, 28783, 28774, 28734}
PUBLISHED = {
    "Mistral-7B-v0.1": (MISTRAL_DIGITS, (330, 365, 334, 384, 413), 13),
    "Qwen2.5-0.5B-Instruct": (set(range(15, 25)), (362, 425, 356, 422, 468), 198),
}
LETTERS = tuple(f" {letter}" for letter in "ABCDE")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    lines = [*sentences(200), "Q: A B C D E (A) (B) 0 1 2 3 4 5 6 7 8 9"]
    return tokenizer_training.train_sentencepiece(lines, tmp_path_factory.mktemp("t"), 320)


def number(answer, question="How many?"):
    return Item(f"Q: {question}\nA:", answer, (), "number")


@pytest.mark.parametrize("name", PUBLISHED)
def test_allowed_ids_are_the_published_ones(shared, name):
    tokenizer = tokenizer_lib.load(shared / "real" / "configs" / name)
    digits, letters, newline = PUBLISHED[name]
    allowed = questions.spell(tokenizer, questions.DIGITS).allowed
    assert {*allowed[:-1]} == digits and len(allowed) == 11 and allowed[-1] == newline
    for count in (2, 3, 5):  # PIQA, SIQA, CommonsenseQA
        allowed = questions.spell(tokenizer, LETTERS[:count]).allowed
        assert allowed == (*letters[:count], newline)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_walk_with_real_tokenizers(shared, name):
    """ " 1,203": the blank and the comma are skipped; digits and the newline are read."""
    tokenizer = tokenizer_lib.load(shared / "real" / "configs" / name)
    [question] = questions.prepare([number(" -1,203")], tokenizer)
    read = [step.ids[step.target] for step in question.walk]
    assert tokenizer.decode(read) == "1203\n" and len(question.rows) == 1
    [row], last = question.rows, question.walk[-1].position
    assert last == len(row.tokens) - 1 and question.length == last + 2
    item = lettered("Where?", ["here", "there", "nowhere"], 1)
    [question] = questions.prepare([item], tokenizer)
    [row] = question.rows  # one context serves the walk and all choices
    colon = len(tokenizer.opening + tokenizer.encode(item.prompt)) - 1
    assert [step.position for step in question.walk] == [colon, colon + 1]
    assert [[step.position for step in path] for path in question.choices] == [[colon]] * 3
    assert len(row.reads[colon]) == 4 and question.right == 1


def test_the_walk(tiny):
    """Every digit of a number, in order, each read where its own context ends."""
    [question] = questions.prepare([number(" 40,7")], tiny)
    ids = tiny.opening + tiny.encode("Q: How many?\nA: 40,7\n")
    [row] = question.rows
    assert row.tokens == ids[:-1]
    assert [ids[step.position + 1] for step in question.walk] == [
        step.ids[step.target] for step in question.walk
    ]
    assert tiny.decode([step.ids[step.target] for step in question.walk]) == "407\n"
    for step in question.walk:
        assert set(row.reads[step.position]) == set(step.ids) and len(step.ids) == 11


def test_an_answer_that_is_no_token_is_refused(tiny):
    with pytest.raises(UserError, match="does not write ' nobody at all' and a newline as one"):
        questions.spell(tiny, [" A", " nobody at all"])


def test_digits_that_are_merged_are_refused(tmp_path):
    """Tokenizers with pieces such as "18" have no digit-wise metric."""
    lines = [f"the year {year} A: {year}" for year in range(1800, 1990)]
    merging = tokenizer_training.train_sentencepiece(lines, tmp_path, 330, split_digits=False)
    assert len(merging.encode("1811")) < 5
    with pytest.raises(UserError, match="symbol by symbol|as one token each"):
        questions.prepare([number(" 1811")], merging)


def test_choices_of_text_are_read_from_where_they_part(tiny):
    item = Item("the cat", " sat on the mat", (" sat on the mat", " sat on a big tree"), "text")
    [question] = questions.prepare([item], tiny)
    assert question.walk == [] and question.right == 0
    for choice, path in zip(item.choices, question.choices, strict=True):
        ids = tiny.opening + tiny.encode(item.prompt + choice)
        start = path[0].position + 1
        assert [step.ids for step in path] == [(i,) for i in ids[start:]]
        assert start <= len(tiny.opening + tiny.encode(item.prompt))
        assert question.rows[path[0].row].tokens[: len(ids) - 1] == ids[:-1]


def test_choices_that_the_tokenizer_cannot_tell_apart_are_refused(tiny):
    """Many SentencePiece models drop blanks at the end, and all but one between words."""
    dropping = types.SimpleNamespace(
        opening=[1],
        after_opening=lambda ids: ids,
        encode_batch=lambda texts: [tiny.encode(" ".join(t.split())) for t in texts],
    )
    for choices in ((" sat", " "), (" sat", "  sat"), (" sat", " sat ")):
        with pytest.raises(UserError, match="are alike or empty"):
            questions.prepare([Item("the cat", " sat", choices, "text")], dropping)


def test_a_choice_that_another_begins_with_needs_no_row(tiny):
    item = Item("the cat", " sat", (" sat", " sat on nobody"), "text")
    [question] = questions.prepare([item], tiny)
    assert len(question.rows) == 1
    lengths = [len(path) for path in question.choices]
    assert lengths[0] < lengths[1]
