"""Items that a text contains, against a search of strings in strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.evaluation import contamination

texts = st.lists(st.sampled_from("ab"), max_size=14).map(" ".join)


def contains(item, document, words):
    """The definition by strings, whose words are single letters."""
    found = item.split()
    length = min(words, len(found))
    if length < min(words, 8):
        return False
    parts = (" ".join(found[i : i + length]) for i in range(len(found) - length + 1))
    return any(f" {part} " in f" {document} " for part in parts)


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4), st.integers(1, 13))
def test_the_same_items_as_a_search_in_strings(items, documents, words):
    expected = [
        n for n, item in enumerate(items) if any(contains(item, d, words) for d in documents)
    ]
    assert contamination.shared(items, documents, words) == expected


def test_case_and_punctuation_do_not_count():
    question = "Q: Where would you put a plate after washing it?\n(A) Table!"
    text = "so, q where WOULD you put -- a plate after: washing it (a) table"
    assert contamination.shared(["other words", question], [text]) == [1]


@pytest.mark.parametrize(
    "prompt", ["Q: Why?\n(A) no\n(B) yes\nA:", "Question: Why?\nAnswer:", "Why?"]
)
def test_the_question_alone(prompt):
    assert contamination.question(prompt) == "Why?"


def test_short_items_count_as_a_whole():
    eight = "one two three four five six seven eight"
    assert contamination.shared([eight, eight[:-6]], [f"x {eight} y"]) == [0]
    assert contamination.shared([eight], [f"x {eight[:-6]} y"]) == []


def test_the_line():
    assert contamination.sentence([], 9, "a.txt").startswith("none of 9 items")
    assert (
        contamination.sentence(list(range(6)), 9, "a.txt")
        == "6 of 9 items share 13 words in a row with a.txt: 1, 2, 3, 4, 5, ..."
    )
