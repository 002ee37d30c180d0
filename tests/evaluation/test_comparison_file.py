"""The file of the last comparison: read again unchanged, and ignored when it is out of date."""

import dataclasses
import json
import math
import os

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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A working directory for tests that change no stage."""
    root = tmp_path_factory.mktemp("run")
    save_stage(root, clock_config(), 0)
    return root


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
        "split": "test",
        "answering": None,
    }
    assert rows[1]["accuracy"] is None and rows[1]["nll_hard"] is None
    assert "NaN" not in (root / comparison_file.NAME).read_text()  # which is no JSON


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"\xff\xfe", "caf\u00e9 \U0001f600".encode()])
def test_names_of_any_bytes_come_back(run, name):
    """A path of text, or a name of a stage on the command line, need not be UTF-8."""
    text = os.fsdecode(name)
    rows = [dataclasses.replace(ROWS[0], name=text)]
    comparison_file.write(run, rows, text, {"text": text})
    kept = comparison_file.read(run)
    assert kept is not None
    assert (kept.about, kept.flags, kept.rows[0]["name"]) == (text, {"text": text}, text)


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


@pytest.mark.parametrize(
    "name, value",
    [
        *(
            (name, value)
            for name in ("stage", "name", "kind")
            for value in (None, 3, ["a"], "\ud800")
        ),
        *((name, value) for name in ("steps", "flops_per_token") for value in (None, 1.5, "1", -1)),
        *(("nll", value) for value in ("1", [1.0], True, math.nan, math.inf, 10**400)),
        *(("accuracy", value) for value in (None, 1.5, -0.1, "1")),
        ("accuracy_low", None),
        ("ms_per_token", {}),
        ("kind", "other"),
    ],
)
def test_a_field_of_a_wrong_type_makes_the_file_none(run, name, value):
    comparison_file.write(run, ROWS)
    path = run / comparison_file.NAME
    content = json.loads(path.read_text())
    content["rows"][0][name] = value
    path.write_text(json.dumps(content))
    assert comparison_file.read(run) is None
    del content["rows"][0][name]
    path.write_text(json.dumps(content))
    assert comparison_file.read(run) is None


BAD_TEXTS: tuple[object, ...] = (None, 1.5, [], True)
BAD_STEPS: tuple[object, ...] = (None, [], {}, {"0": "6"})


@pytest.mark.parametrize(
    "change",
    [
        *({"about": 3}, {"about": "\ud800"}, {"flags": []}, {"flags": {"other": 1}}, {"rows": []}),
        *({"flags": {"text": value}} for value in BAD_TEXTS),
        *({"steps": value} for value in BAD_STEPS),
    ],
)
def test_other_fields_of_a_wrong_type_make_the_file_none(run, change):
    comparison_file.write(run, ROWS)
    path = run / comparison_file.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert comparison_file.read(run) is None


def test_a_file_cut_off_or_with_zeros_behind_it_is_none(run):
    comparison_file.write(run, ROWS)
    path = run / comparison_file.NAME
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert comparison_file.read(run) is None
    for tail in (b"\0", bytes(4096), b"{"):
        path.write_bytes(content + tail)
        assert comparison_file.read(run) is None
    path.write_bytes(content)
    assert comparison_file.read(run) is not None
