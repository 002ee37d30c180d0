"""Flags that refuse what is no path on this machine, and what is no finite number."""

from pathlib import Path

import pytest
from absl import flags

from fqs_jax.runtime import typed_flags


@pytest.fixture
def known(monkeypatch):
    values = flags.FlagValues()
    original = flags.DEFINE
    monkeypatch.setattr(flags, "DEFINE", lambda *given: original(*given, flag_values=values))
    typed_flags.define_path("out", "", "A path.")
    typed_flags.define_number("rate", 0.5, "A number.", 0.0, 2.0)
    return values


def parsed(known, *words):
    known(["program", *words])
    return known.out, known.rate


def test_what_is_accepted(known, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert parsed(known) == ("", 0.5)
    assert parsed(known, "--out=~/run", "--rate=2") == ("/home/of/mine/run", 2.0)
    assert parsed(known, "--out=./a//b", "--rate=1e-3") == ("./a//b", 1e-3)
    assert Path(parsed(known, "--out", "W:3")[0]) == Path("W:3")


@pytest.mark.parametrize(
    "word, expected",
    [
        ("--out=s3://bucket/run", "is an address"),
        ("--out=s3:/bucket", "is an address"),
        ("--out=hf://org/model", "hf download"),
        ("--out=file:///etc", "give the path alone"),
        ("--out=a\0b", "NUL"),
        ("--rate=nan", "must be finite"),
        ("--rate=inf", "must be finite"),
        ("--rate=1e999", "must be finite"),
        ("--rate=-1", "range"),
        ("--rate=2.1", "range"),
        ("--rate=x", "could not convert"),
    ],
)
def test_what_is_refused(known, word, expected):
    with pytest.raises(flags.IllegalFlagValueError, match=expected):
        parsed(known, word)
