"""Tables on any terminal, and lines of JSON that any program reads."""

import json
import math

import pytest
from rich.table import Table

from fqs_jax.runtime import screen


def table():
    made = Table(title="W: [/x] :smile: \x1b[2J")
    for column in ("model", "a_long_title", "loss"):
        made.add_column(column)
    made.add_row("stage [/b] [red]of\u202e many words", "123456", "0.12345678")
    return made


@pytest.mark.parametrize("columns", ["0", "1", "10", "30", "60", "200"])
def test_every_number_is_shown(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    screen.show(table())
    printed = capsys.readouterr().out
    assert "123456" in printed and "0.12345678" in printed and "…" not in printed


def test_text_from_outside_is_text(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    screen.show(table())
    printed = capsys.readouterr().out
    assert r"W: [/x] :smile: \x1b[2J" in printed
    assert r"stage [/b] [red]of\u202e many words" in printed


def test_json_is_json(capsys):
    screen.print_json({"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5, "e": "\udcff\n"})
    line = capsys.readouterr().out
    found = json.loads(line, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [None, {"c": None}], "d": 1.5, "e": "\udcff\n"}
    assert line.count("\n") == 1
