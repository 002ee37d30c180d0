"""Text from outside cannot act on a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.runtime.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve 日本語 🙂", "naïve 日本語 🙂"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # C1: a control sequence in one character
        ("a\nb\rc\td\0", r"a\nb\rc\td\x00"),
        ("abc\u202efed", r"abc\u202efed"),  # shows what follows from right to left
        ("a\u2066b\u200fc\ufeff", r"a\u2066b\u200fc\ufeff"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("\ud83d", r"\ud83d"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_what_acts_is_escaped(text, shown):
    assert printable(text) == shown


def test_lines_can_be_kept():
    assert printable("a\nb\x1b\tc", keep="\n\t") == "a\nb\\x1b\tc"


def test_long_text_is_cut_in_the_middle():
    shown = printable("a" * 5000 + "z" * 5000, most=90)
    assert shown == "a" * 60 + " ... " + "z" * 30
    assert printable("a" * 90, most=90) == "a" * 90


@given(st.text(st.characters()))
def test_any_text_becomes_one_line_that_can_be_printed(text):
    shown = printable(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    controls = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert set(controls) <= set("\u200c\u200d")
