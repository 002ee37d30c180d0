"""The file of the last comparison: read again unchanged, and ignored when it is out of date."""

import json

import pytest

from fqs_jax.evaluation import comparison_file
from fqs_jax.evaluation.comparison import Row
from fqs_jax.evaluation.statistics import Interval
from tests.tiny_runs import clock_config, save_stage

ROWS = [
    Row("0", "base", Interval(0.5, 0.3, 0.7), 0.1, 1.5, 2.0, 6, "base", 4096, 1.0, 1.5, 2.0, 1.5),
    Row(
        "1", "think-5-2", nll=1.25, ms_per_token=4.0, steps=6, kind="thinking", flops_per_token=8192
    ),
]


@pytest.fixture
def root(tmp_path):
    save_stage(tmp_path, clock_config(), 0)
    return tmp_path


def test_rows_come_back(root):
    assert comparison_file.read(root) is None
    comparison_file.write(root, ROWS, "some text", {"text": "a.txt"})
    rows, about, flags = comparison_file.read(root)
    assert flags == {"text": "a.txt"}
    assert about == "some text" and rows == [comparison_file.as_json(row) for row in ROWS]
    assert rows[0] == {
        "stage": "0",
        "name": "base",
        "kind": "base",
        "steps": 6,
        "flops_per_token": 4096,
        "accuracy": 0.5,
        "accuracy_error": 0.1,
        "accuracy_low": 0.3,
        "accuracy_high": 0.7,
        "nll": 1.5,
        "nll_easy": 1.0,
        "nll_middle": 1.5,
        "nll_hard": 2.0,
        "ms_per_token": 2.0,
        "temperature": 1.5,
    }
    assert rows[1]["accuracy"] is None and rows[1]["nll_hard"] is None
    assert "NaN" not in (root / comparison_file.NAME).read_text()  # which is no JSON


def test_a_stage_trained_since_makes_it_out_of_date(root):
    comparison_file.write(root, ROWS)
    save_stage(root, clock_config(), 1)
    assert comparison_file.read(root) is None


@pytest.mark.parametrize("change", ["{", "[]", "null", "rows: 3", "rows: [1]", "rows: [{}]"])
def test_a_damaged_file_is_none(root, change):
    comparison_file.write(root, ROWS)
    path = root / comparison_file.NAME
    if change.startswith("rows"):
        content = json.loads(path.read_text())
        change = json.dumps(content | {"rows": json.loads(change.removeprefix("rows: "))})
    path.write_text(change)
    assert comparison_file.read(root) is None
