"""Sweeps of checkpoints: which items choose, which are reported, and gains over the base by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.sweeps import checkpoint
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps import choosing, fields, gains, gains_table, overview, sheet
from fqs_jax.sweeps import results as results_lib
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.outcomes import HELD_OUT, Model, Outcome, as_json, from_json
from fqs_jax.sweeps.variants import benchmark, variant
from tests.sweeps.invented import sweep
from tests.tiny_runs import hf_folder, write_text

RATES = tuple(f"stage_1.learning_rate={rate}" for rate in ("1e-5", "1e-4", "1e-3"))
THINKING = Model("1", "think", "thinking", "4")
N, CHOOSING = 8, 3  # items, of which the first ones choose
# Right answers of each setting: the second is best on the first three items, and worst on the others.
RIGHT = {
    RATES[0]: [0, 1, 0, 1, 1, 1, 1, 1],
    RATES[1]: [1, 1, 1, 0, 0, 0, 1, 0],
    RATES[2]: [0, 0, 1, 1, 1, 1, 1, 1],
}
BASE = [1, 0, 0, 0, 0, 1, 0, 0]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("gains")
    hf_folder(place / "HF")
    write_text(place / "text.jsonl", 20)
    return place


def checkpoint_sweep(place: Path, **changes: Any) -> Any:
    return sweep(
        **{
            "config": "configs/small_hf.py",
            "overrides": ("data.seq_len=24",),
            "show_once": (),
            "init_from": str(place / "HF"),
            "text": str(place / "text.jsonl"),
            "benchmarks": (benchmark("choices", "own.jsonl"),),
            "benchmark_folder": str(place),
            "validation_items": CHOOSING,
            "variants": (variant("rlp", stages="1", bracket=RATES),),
            **changes,
        }
    )


def outcome(model: Model, right: Any, name: str = "choices", **changes: Any) -> Outcome:
    right_N = np.array(right, float)
    measures = {"expected_p": 0.2 + 0.5 * right_N, "accuracy": right_N, "nll": 2 - right_N}
    return dataclasses.replace(
        Outcome(name, "digest", model, np.arange(len(right_N)), np.ones(len(right_N)), measures),
        **changes,
    )


def result(cell: Cell, found: list[Outcome]) -> dict[str, Any]:
    training = {"1": {"tokens": 70, "flops": 9000, "after_base_flops": 9000}}
    about = {
        "seed": cell.seed,
        "flags": cell.flags,
        "measured_on": cell.measured_on,
        "commit": "abc",
    }
    return json.loads(
        json.dumps(about | {"training": training, "outcomes": list(map(as_json, found))})
    )


def results_of(cells: list[Cell]) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = []
    for cell in cells:
        own = [outcome(gains.BASE, BASE), outcome(THINKING, RIGHT[cell.setting[0]])]
        own.append(outcome(dataclasses.replace(THINKING, thoughts="none"), BASE))
        found.append(result(cell, own))
    return found


def test_the_first_items_choose_and_the_others_are_reported(place):
    config = checkpoint_sweep(place)
    cells = cells_lib.read(config, Path("W"))
    assert cells[0].overrides[1:4] == (
        f"init_from={place / 'HF'}",
        "data.source=text",
        f"data.text={place / 'text.jsonl'}",
    )
    found = overview.make(fields.read(config), cells, results_of(cells), "COMMAND")
    base, thinking, plain = found.content["lines"]
    assert (base["name"], thinking["name"], plain["name"]) == (
        "base",
        "think",
        "think without thoughts",
    )
    assert thinking["setting"] == RATES[1] and not thinking["is_at_edge"]
    assert thinking["validation_mean"]["accuracy"] == 1 and thinking["items"] == N - CHOOSING
    assert thinking["values"]["accuracy"] == [0.2, 0.2] == base["values"]["accuracy"]
    assert thinking["values"]["expected_p"] == pytest.approx([0.3, 0.3])
    assert (thinking["tokens"], base["tokens"]) == (70, 0)
    assert base["gains"] == {} and plain["gains"]["nll"] == {"value": 0, "low": 0, "high": 0}
    assert [line["setting"] for line in found.content["lines_not_chosen"]] == [
        setting for setting in (RATES[0], RATES[2]) for _ in range(3)
    ]
    assert f"{RATES[1]} was chosen of 3 settings, by the accuracy of stage 1" in found.notes[1]
    table = sheet.markdown(found.sheet, found.notes).splitlines()
    assert table[0].split(" | ")[1:5] == ["setting", "model", "benchmark", "items"]
    assert "+0.000 (-0.600 +0.600)" in table[3]  # two items of five changed, one each way
    assert len(found.figure.axes) == 1


def test_a_gain_by_hand():
    """Resampled by NumPy: the interval of a mean of differences, averaged over seeds first."""
    rng = np.random.default_rng(0)
    model, base = rng.normal(0.3, 1, (2, 3, 60))
    change_N = (model - base).mean(axis=0)
    found = gains.gain(list(model), list(base), np.ones(60))
    assert found.value == pytest.approx(change_N.mean())
    means = change_N[np.random.default_rng(1).integers(0, 60, (4000, 60))].mean(axis=1)
    np.testing.assert_allclose(found[1:], np.quantile(means, (0.025, 0.975)), atol=0.03)
    # Tokens weigh alike, not documents.
    weights = np.array([1.0, 3.0])
    pair = gains.gain([np.array([2.0, 4.0])], [np.array([1.0, 1.0])], weights)
    assert pair.value == pytest.approx((1 * 1 + 3 * 3) / 4)
    assert (pair.low, pair.high) == pytest.approx((1, 3))


def test_validation_averages_benchmarks_and_leaves_text_out(place):
    two = (benchmark("choices", "a.jsonl", name="a"), benchmark("choices", "b.jsonl", name="b"))
    [cell, *_] = cells_lib.read(checkpoint_sweep(place, benchmarks=two, held_out="x"), Path("W"))
    own = [outcome(THINKING, [1, 1, 1, 0], "a"), outcome(THINKING, [0, 0, 1, 1, 1], "b")]
    own.append(outcome(dataclasses.replace(THINKING, thoughts="none"), [0] * 5, "b"))
    own.append(outcome(THINKING, [0] * 9, HELD_OUT))
    score = gains.score(cell, result(cell, own), CHOOSING)
    assert score is not None and score.accuracy == pytest.approx((1 + 1 / 3) / 2)
    assert score.nll == pytest.approx(2 - (1 + 1 / 3) / 2)
    nothing = gains.score(cell, result(cell, own[:1]), 0)
    assert nothing is not None and np.isnan(nothing.accuracy)
    assert gains.score(cell, None, CHOOSING) is None


def test_held_out_text_is_reported_whole(place):
    config = checkpoint_sweep(place, held_out="x", variants=(variant("a", stages="1"),))
    cells = cells_lib.read(config, Path("W"))
    text = outcome(THINKING, [1, 1, 0, 0], HELD_OUT, weights_N=np.array([3.0, 1.0, 1.0, 1.0]))
    text = dataclasses.replace(text, measures={"nll": text.measures["nll"]})
    results = [result(cell, [text]) for cell in cells]
    [line] = gains.lines(cells, results, CHOOSING)
    assert line.items == 4 and line.values["nll"] == pytest.approx([(4 * 1 + 2 * 2) / 6] * 2)
    assert not line.validation
    assert gains_table.sheet([line]).titles[5:7] == ["NLL", "gain (95%)"]


def test_the_picture_tells_accuracy_from_the_published_metric(place):
    """The base at its best temperature has no gain in accuracy, so it has a hollow mark alone."""
    cells = cells_lib.read(checkpoint_sweep(place, variants=(variant("a", stages="1"),)), Path("W"))
    sharp = outcome(gains.TEMPERED_BASE, BASE)
    sharp.measures["expected_p"] += 0.3
    own = [outcome(gains.BASE, BASE), sharp, outcome(THINKING, RIGHT[RATES[0]])]
    table = gains.lines(cells, [result(cell, own) for cell in cells], CHOOSING)
    figure = gains_table.draw(table)
    [axes] = figure.axes
    marks = [bars.lines[0] for bars in axes.containers]
    found = [(mark.get_fillstyle(), mark.get_xdata()[0]) for mark in marks]
    # On the reported items the base has one right answer of five, the model all of them.
    expected = [("none", 0.3), ("full", 0.8), ("none", 0.4)]
    assert [fill for fill, _ in found] == [fill for fill, _ in expected]
    np.testing.assert_allclose([x for _, x in found], [x for _, x in expected])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        label for label, *_ in gains_table.DRAWN.values()
    ]


def test_a_base_is_shown_once_and_unfinished_variants_are_told(place):
    both = (variant("a", stages="1"), variant("b", stages="1"), variant("c", stages="1"))
    cells = cells_lib.read(checkpoint_sweep(place, variants=both), Path("W"))
    own = [outcome(gains.BASE, BASE), outcome(THINKING, RIGHT[RATES[0]])]
    results = [result(cell, own) if cell.variant != "c" else None for cell in cells]
    results[3] = None
    table = gains.lines(cells, results, CHOOSING)
    assert [(line.variant, line.name) for line in table] == [
        ("a", "base"),
        ("a", "think"),
        ("b", "think"),
        ("c", "not done yet"),
    ]
    rows = gains_table.sheet(table).rows
    assert [row[4] for row in rows] == ["2", "2", "1 of 2", "0 of 2"]
    assert set(rows[3][3:4] + rows[3][5:]) == {"-"}
    json.dumps(list(map(gains.as_json, table)), allow_nan=False)


def test_items_that_changed_between_seeds_are_refused(place):
    cells = cells_lib.read(checkpoint_sweep(place, variants=(variant("a", stages="1"),)), Path("W"))
    own = outcome(THINKING, BASE)
    results = [result(cells[0], [own]), result(cells[1], [dataclasses.replace(own, digest="x")])]
    with pytest.raises(UserError, match="seeds of a measured different items of choices"):
        gains.lines(cells, results, 0)
    renamed = dataclasses.replace(THINKING, name="other")
    results[1] = result(cells[1], [dataclasses.replace(own, model=renamed)])
    with pytest.raises(UserError, match="seeds of a have different models, .* remove the older"):
        gains.lines(cells, results, 0)
    with pytest.raises(UserError, match="none is left to report"):
        gains.lines(cells, [results[0], results[0]], N)


def test_other_benchmarks_make_a_result_stale(place, tmp_path):
    [cell, *_] = cells_lib.read(checkpoint_sweep(place), tmp_path)
    cell.folder.mkdir(parents=True)
    (cell.folder / "result.json").write_text(json.dumps(result(cell, [outcome(THINKING, BASE)])))
    assert results_lib.read(cell) and not results_lib.is_stale(cell)
    for changes in ({"limit": 7}, {"seed": 1}, {"file": "other.jsonl"}):
        other = dataclasses.replace(cell.benchmarks[0], **changes)
        assert results_lib.is_stale(dataclasses.replace(cell, benchmarks=(other,)))
    wider = dataclasses.replace(cell.benchmarks[0], batch_size=2)
    assert results_lib.read(dataclasses.replace(cell, benchmarks=(wider,)))


def test_outcomes_survive_json():
    before = outcome(THINKING, BASE)
    after = from_json(json.loads(json.dumps(as_json(before))))
    assert after.model == THINKING and after.digest == "digest"
    np.testing.assert_array_equal(after.measures["nll"], before.measures["nll"])
    assert after.mean("accuracy", after.items_N < CHOOSING) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"benchmarks": (benchmark("mmlu", "x"),)},
            "there is no task 'mmlu'; choose from csqa, piqa",
        ),
        (
            {"benchmarks": (benchmark("csqa", "x", scoring="words"),)},
            "scoring is 'words'; choose from",
        ),
        ({"benchmarks": (benchmark("gsm8k", "x", scoring="text"),)}, "gsm8k has no options"),
        (
            {"benchmarks": (benchmark("csqa", "x", limit=0),)},
            "limit, thought_seeds and batch_size must",
        ),
        ({"benchmarks": (benchmark("csqa", "x", seed=-1),)}, "benchmark csqa: seed is -1"),
        ({"benchmarks": (benchmark("csqa", ""),)}, "benchmark csqa has no file"),
        (
            {"benchmarks": (benchmark("csqa", "x"),) * 2},
            "two benchmarks of the sweep are named 'csqa'",
        ),
        ({"benchmarks": (("csqa", "x"),)}, "make it with benchmark"),
        ({"benchmarks": "csqa"}, "benchmarks is 'csqa'; give a tuple"),
        ({"text": 3}, "the sweep's text is 3; give a text"),
        ({"validation_items": -1}, "validation_items are -1"),
        ({"validation_items": 0}, "variant rlp: its bracket needs benchmark items to choose by"),
        (
            {"benchmarks": (), "held_out": "x"},
            "validation_items are 3; give a number of items of its",
        ),
        (
            {"benchmarks": (), "validation_items": 0},
            "variant rlp: .*give the sweep benchmarks or held",
        ),
        (
            {"text": ""},
            "variant rlp: there is no text to train on: give the sweep --config.text=FILE",
        ),
        ({"init_from": ""}, "variant rlp: .*give the sweep --config.init_from=HF_DIR"),
        ({"init_from": "/none"}, "variant rlp: .*/none"),
    ],
)
def test_refusals(place, changes, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        cells_lib.read(checkpoint_sweep(place, **changes), Path("W"))
    assert "\n" not in str(error.value)


def test_the_example_can_be_read(place):
    """Every variant has a bracket, and judges by its last stage."""
    config = checkpoint.get_config()
    config.init_from, config.text = str(place / "HF"), str(place / "text.jsonl")
    cells = cells_lib.read(config, Path("W"))
    assert {(cell.variant, cell.judged) for cell in cells} == {
        ("think", 3),
        ("same-steps", 4),
        ("same-flops", 4),
    }
    assert len({cell.folder for cell in cells}) == len(cells) == 36


def test_files_of_benchmarks_have_a_folder_of_their_own():
    given = (
        benchmark("piqa", "a/valid.jsonl", labels_file="valid.lst"),
        benchmark("csqa", "hub:tau/commonsense_qa:validation"),
        benchmark("choices", "/full.jsonl"),
    )
    read = fields.read(checkpoint_sweep(Path("/data"), benchmarks=given)).benchmarks
    assert [each.file for each in read] == ["/data/a/valid.jsonl", given[1][1], "/full.jsonl"]
    assert read[0].labels_file == "/data/valid.lst" and read[1].labels_file == ""


def test_choosing_by_nll(place):
    config = checkpoint_sweep(place, choose_by="nll")
    cells = cells_lib.read(config, Path("W"))
    scores = [choosing.Score(0.9, 2.0)] * 2 + [choosing.Score(0.1, 1.0)] * 2 + [None] * 2
    choice = choosing.choose(cells, scores, fields.read(config).choose_by)["rlp"]
    assert choice.chosen == (RATES[1],)
    assert "by the NLL of stage 1 on validation items, 1.000" in choosing.notes({"rlp": choice})[0]


def test_a_hidden_line_that_differs_is_told(place):
    both = (variant("a", stages="1"), variant("b", stages="1"))
    config = checkpoint_sweep(place, variants=both, show_once=(1,))
    cells = cells_lib.read(config, Path("W"))
    results = [result(cell, [outcome(THINKING, RIGHT[RATES[0]])]) for cell in cells]
    same = overview.make(fields.read(config), cells, results, "COMMAND")
    assert [line["variant"] for line in same.content["lines"]] == ["a"]
    assert not [note for note in same.notes if "differs" in note]
    results[-1] = result(cells[-1], [outcome(THINKING, 1 - np.array(RIGHT[RATES[0]]))])
    other = overview.make(fields.read(config), cells, results, "COMMAND")
    [told] = [note for note in other.notes if "differs" in note]
    assert told.startswith(
        f"think of b on choices, seed {cells[-1].seed}, differs from that of a: NLL "
    )
