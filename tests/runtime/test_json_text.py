"""What is printed and written as JSON is JSON, whatever numbers are in it."""

import json
import math

import pytest

from fqs_jax.runtime import files, screen


def no_constant(name):
    raise AssertionError(name)  # NaN and Infinity are no JSON


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_null_everywhere(tmp_path, capsys, number):
    value = {"a": number, "b": [1.5, (number, {"c": number})], "d": "NaN"}
    expected = {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN"}
    screen.print_json(value)
    files.write_json(tmp_path / "a.json", value)
    for text in (capsys.readouterr().out, (tmp_path / "a.json").read_text()):
        assert json.loads(text, parse_constant=no_constant) == expected
