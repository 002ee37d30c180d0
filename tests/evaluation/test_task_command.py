"""The benchmark part of the evaluate program."""

import json
import math

import pytest

from fqs_jax.evaluation import task_command
from tests import benchmark_files
from tests.benchmark_files import write_lines
from tests.tiny_runs import clock_config, refusal, run, save_stage

CHOICES = [
    {"prompt": f"{a} +{b} = ", "choices": [str(i) for i in range(7)], "answer": (a + b) % 7}
    for a in range(5)
    for b in range(3)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("command")
    benchmark_files.write_all(place)
    write_lines(place / "own.jsonl", CHOICES)
    write_lines(place / "other.jsonl", CHOICES[5:])
    write_lines(place / "copy.jsonl", benchmark_files.GSM8K)
    config = clock_config()
    for number in (0, 1):
        save_stage(place / "W", config, number, seed=number)
    return place


def test_all_stages_side_by_side(place):
    options = ("--task=choices", f"--task_file={place / 'own.jsonl'}", "--thought_seeds=2")
    done = run("evaluate", f"--workdir={place / 'W'}", "--all_stages", *options, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["stage"], row["thoughts"]) for row in rows] == [
        ("0", "none"),
        ("1", "none"),
        ("1", "2"),
    ]
    for row in rows:
        assert row["items"] == 15 and row["too_long"] == 0
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert len(row["calibrated_at"]) == len(row["sharpened_at"]) == 2
        assert 0 < row["expected_prob"] < 1 and row["nll"] > 0
    assert rows[2]["expected_prob_spread"] > 0 == rows[1]["expected_prob_spread"]


def test_the_table_of_one_stage_with_temperatures_of_another_file(place):
    options = ("--task=choices", f"--task_file={place / 'own.jsonl'}", "--greedy", "--limit=4")
    fit = f"--fit_file={place / 'other.jsonl'}"
    done = run("evaluate", f"--checkpoint={place / 'W'}", "--stage=1", *options, fit)
    for part in ("choices: 4 items", "expected p", "calibrated", "sharpened", "greedy", "none"):
        assert part in done.stdout


@pytest.mark.exhaustive
def test_options_by_their_texts(place):
    """A line of JSON for each model, with and without thoughts; the table of the same numbers."""
    options = ("--task=choices", f"--task_file={place / 'own.jsonl'}", "--scoring=text")
    models = (f"--workdir={place / 'W'}", "--all_stages", "--thought_seeds=2")
    done = run("evaluate", *models, *options, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["stage"], row["thoughts"]) for row in rows] == [
        ("0", "none"),
        ("1", "none"),
        ("1", "2"),
    ]
    for row in rows:
        assert (row["scoring"], row["items"], row["too_long"]) == ("text", 15, 0)
        for name in ("accuracy", "accuracy_by_characters", "accuracy_by_tokens"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
        # Every option has one character and one token, so nothing changes.
        assert row["accuracy"] == row["accuracy_by_characters"] == row["accuracy_by_tokens"]
        assert row["nll"] > 0 and (row["gain"] is None) == (row is rows[0])
    done = run("evaluate", *models, *options)
    for part in ("choices: 15 items", "by characters", "by tokens", "none", "think-5-2"):
        assert part in done.stdout
    for row in rows:
        assert f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f}" in done.stdout
        assert row is rows[0] or f"{row['gain']:+.3f} ({row['gain_low']:+.3f}" in done.stdout


def test_what_is_unknown_is_a_dash():
    with_temperature = task_command._with_temperature
    assert with_temperature(math.nan, ()) == "-"
    assert with_temperature(0.5, (2.0, 0.5)) == "0.5000 @ 1.00"


@pytest.mark.parametrize(
    "options, reason",
    [
        (
            "--task=gsm8k --task_file=PLACE/gsm8k.jsonl --limit=2 --fit_file=PLACE/copy.jsonl",
            "2 of the first 3 items of --fit_file are in --task_file too",
        ),
        (
            "--task=csqa --task_file=PLACE/csqa.jsonl --text=PLACE/none.txt",
            "none.txt",
        ),
        (
            "--task=csqa --task_file=PLACE/csqa.jsonl --workdir=PLACE/W",
            "--workdir is for --all_stages; add it, or give --checkpoint=",
        ),
        ("--task=gsm8k --task_file=PLACE/gsm8k.jsonl --votes=2 --greedy", "not for --votes"),
        (
            "--task=gsm8k --task_file=PLACE/gsm8k.jsonl --votes=2 --chains_file=PLACE/none/x",
            "none/x: No such file or directory",
        ),
        ("--task=csqa", "--task_file is missing"),
        (
            "--task=gsm8k --task_file=PLACE/gsm8k.jsonl --scoring=text",
            "--scoring=text is for --task=csqa|piqa|siqa|choices; gsm8k has no options",
        ),
        (
            "--task=csqa --task_file=PLACE/csqa.jsonl --scoring=foo",
            "--scoring=foo: value should be one of <letters|text>",
        ),
        (
            "--task=csqa --task_file=PLACE/csqa.jsonl --scoring=text --fit_file=PLACE/csqa.jsonl",
            "--fit_file is not for --scoring=text",
        ),
        (
            "--task=siqa --task_file=PLACE/siqa.jsonl --scoring=text --siqa_space",
            "--siqa_space is for --scoring=letters",
        ),
        ("--text=x --scoring=text", "--scoring is for --task, not for the loss of one model"),
        ("--task=csqa --task_file=PLACE/csqa.jsonl --votes=2", "--votes is for --task=gsm8k"),
        ("--task=csqa --task_file=PLACE/csqa.jsonl --top_p=0.3", "--top_p is for --votes; add"),
        (
            "--task=gsm8k --task_file=PLACE/gsm8k.jsonl --max_new_tokens=4",
            "add --votes=8 or leave it",
        ),
        (
            "--task=csqa --task_file=PLACE/csqa.jsonl --siqa_space",
            "--siqa_space is for --task=siqa",
        ),
        ("--task=csqa --task_file=PLACE/csqa.jsonl --greedy --thought_seeds=2", "leave one out"),
        (
            "--task=gsm8k --task_file=PLACE/gsm8k.jsonl --votes=2 --thought_seeds=2",
            "--thought_seeds is not for --votes",
        ),
        (
            "--task=csqa --task_file=PLACE/csqa.jsonl --checkpoint=PLACE/W --stage=0",
            "does not write",
        ),
    ],
)
def test_refusals(place, options, reason):
    assert reason in refusal("evaluate", *options.replace("PLACE", str(place)).split())
