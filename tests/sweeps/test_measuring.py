"""A cell of a checkpoint, measured: the numbers are those of the evaluate program."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from fqs_jax import huggingface
from fqs_jax.data import corpus
from fqs_jax.evaluation import problems
from fqs_jax.evaluation import text as text_lib
from fqs_jax.evaluation.tasks import asking, known, option_scores, option_texts, scores
from fqs_jax.evaluation.tasks import items as items_lib
from fqs_jax.model import decoder
from fqs_jax.runs import folders, loading, source
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import fields, gains, measuring, outcomes, results
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.variants import benchmark
from tests.benchmark_files import write_lines
from tests.sweeps.invented import sweep
from tests.tiny_runs import clock_config, hf_folder, save_stage, sentences, write_text

SUBJECTS = ("the cat", "Tom", "a bird")
ITEMS = [
    {
        "prompt": f"{SUBJECTS[n % 3]} saw",
        "choices": [" the mat", " a big tree", " his hat", " seven stars"][: 2 + n % 3],
        "answer": n % 2,
    }
    for n in range(9)
]
ITEMS[4]["prompt"] = " ".join(sentences(30))  # longer than the model


@pytest.fixture(scope="module")
def cell(tmp_path_factory) -> Cell:
    """A trained cell: a random checkpoint, and a thinking stage with random parameters."""
    place = tmp_path_factory.mktemp("measured")
    write_lines(place / "own.jsonl", ITEMS)
    write_text(place / "held_out.jsonl", 6, seed=3)
    given = (
        benchmark("choices", "own.jsonl", thought_seeds=2, seed=5),
        benchmark("choices", "own.jsonl", thought_seeds=2, limit=6, scoring="text"),
    )
    read = fields.read(sweep(benchmarks=given, benchmark_folder=str(place)))
    folder = place / "W" / "cells" / "a" / "seed_0"
    config = clock_config(
        {"init_from": str(hf_folder(place / "HF")), "data.source": "text", "stage_1.start": None}
    )
    save_stage(folder, config, 1, seed=1)
    return Cell(
        number=0,
        variant="a",
        seed=0,
        folder=folder,
        config="c.py",
        overrides=("seed=0",),
        stages="1",
        stage_numbers=(1,),
        benchmarks=read.benchmarks,
        held_out=str(place / "held_out.jsonl"),
        root=place / "W",
    )


@pytest.fixture(scope="module")
def measured(cell):
    return measuring.evaluate(cell)


def test_numbers_are_those_of_the_evaluate_program(cell, measured):
    assert measured == json.loads((cell.folder / "result.json").read_text())
    found = {(each.benchmark, each.model): each for each in gains.read(measured)}
    thinking = outcomes.Model("1", "think-5-2", "thinking", "2")
    plain = dataclasses.replace(thinking, thoughts="none")
    settings = asking.Settings(thought_seeds=2, seed=5)
    about = {"stage": "1", "model": "m", "task": "choices", "too_long": 1}
    sizes = clock_config().mesh
    loaded = loading.load(
        str(cell.folder), "1", mesh=sharding.make_mesh(sizes)
    )  # as it was measured
    asked = items_lib.read(known.published("choices"), cell.benchmarks[0].file)
    result = asking.evaluate(loaded, asked, settings)
    for answers, model in ((result.plain, plain), (result.thinking, thinking)):
        row = scores.row(answers, None, thoughts="2", **about)
        own = found["choices", model]
        assert own.items_N.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
        assert own.mean("accuracy") == pytest.approx(row.accuracy.value)
        assert own.mean("expected_p") == pytest.approx(row.expected_prob)
        assert own.mean("nll") == pytest.approx(row.nll)
    cloze = items_lib.read(known.TEXTS["choices"], cell.benchmarks[1].file, limit=6)
    texts = option_texts.evaluate(loaded, cloze, dataclasses.replace(settings, seed=0))
    written = option_scores.row(texts.thinking, thoughts="2", **about)
    own = found["choices by text", thinking]
    assert own.items_N.tolist() == [0, 1, 2, 3, 5]
    assert own.mean("by_characters") == pytest.approx(written.accuracy_by_characters.value)
    assert own.mean("by_tokens") == pytest.approx(written.accuracy_by_tokens.value)
    assert own.mean("nll") == pytest.approx(written.nll) and "expected_p" not in own.measures
    documents = [json.loads(line)["text"] for line in Path(cell.held_out).read_text().splitlines()]
    losses = text_lib.score(loaded, documents, 16).summary()
    for model, name in (
        (plain, "nll_base"),
        (dataclasses.replace(thinking, thoughts="1"), "nll_thought"),
    ):
        own = found[outcomes.HELD_OUT, model]
        assert own.mean("nll") == pytest.approx(losses[name], rel=1e-6)
        assert own.weights_N.sum() == losses["tokens"]


def test_the_base_at_its_best_temperature(measured):
    """Answers stay; random weights are too sure, so a temperature helps the loss of text."""
    found = {(each.benchmark, each.model): each for each in gains.read(measured)}
    for name in ("choices", "choices by text"):
        base, tempered = found[name, gains.BASE], found[name, gains.TEMPERED_BASE]
        np.testing.assert_array_equal(base.measures["accuracy"], tempered.measures["accuracy"])
        assert (base.measures["nll"] != tempered.measures["nll"]).all()
    text, tempered_text = (found[outcomes.HELD_OUT, m] for m in (gains.BASE, gains.TEMPERED_BASE))
    assert tempered_text.mean("nll") < text.mean("nll")


def test_costs_are_those_of_the_stage_alone(measured):
    cost = measured["training"]["1"]
    assert cost["tokens"] == 6 * 2 * 16 and cost["flops"] == cost["after_base_flops"] > 0


def test_cells_share_the_measurements_of_their_checkpoint(cell, measured, monkeypatch):
    loads = []
    original = loading.load

    def load(folder, stage, **options):
        loads.append(stage)
        return original(folder, stage, **options)

    monkeypatch.setattr(loading, "load", load)
    again = measuring.evaluate(dataclasses.replace(cell, variant="b"))
    assert loads == ["1"] and again["outcomes"] == measured["outcomes"]
    assert len(list((cell.root / measuring.BASES).iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"benchmarks": (benchmark("choices", "none.jsonl"),)}, "benchmark choices: .*none.jsonl"),
        ({"benchmarks": (benchmark("csqa", "own.jsonl"),)}, "benchmark csqa: .*own.jsonl:1"),
        ({"validation_items": 9}, "choices has 9 items, and validation_items is 9: none is left"),
        ({"held_out": "/none.jsonl"}, "/none.jsonl"),
    ],
)
def test_what_models_are_measured_on_is_checked_first(cell, changes, complaint):
    fields_ = {"benchmarks": (benchmark("choices", "own.jsonl"),), "benchmark_folder": ""}
    fields_ |= {"benchmark_folder": str(cell.root.parent)} | changes
    with pytest.raises(UserError, match=complaint) as error:
        measuring.check(fields.read(sweep(**fields_)))
    assert "\n" not in str(error.value)


def test_a_checkpoint_on_problems_of_the_project(tmp_path):
    """Rows of the checkpoint and of the stage that starts from it, on held-out problems."""
    scratch = clock_config()
    model, _ = source.prepare(tmp_path / "scratch", scratch)
    folder = tmp_path / "HF"
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32),
        decoder.abstract_params(model),
    )
    huggingface.export(params, model, folder, folders.source_folder(tmp_path / "scratch"))
    config = clock_config(
        {"init_from": str(folder), "stage_1.start": None, "data.clock.lengths": (1,)}
    )
    cell = Cell(0, "a", 0, tmp_path / "cell", "c.py", ("seed=0",), "1", (1,))
    save_stage(cell.folder, config, 1)
    result = measuring.evaluate(cell)
    checkpoint, scaled, thinking = result["rows"]
    assert [row["stage"] for row in result["rows"]] == ["init", "init", "1"]
    assert checkpoint["name"] == "checkpoint" and thinking["name"] == "think-5-2"
    assert scaled["name"].startswith("checkpoint at temperature ")
    task = corpus.built_in_task(config.data, 0)
    assert task is not None
    for row, split in (("nll", "test"), ("validation_nll", "validation")):
        [answers] = problems.read(loading.load(str(folder)), task, split)
        assert checkpoint[row] == pytest.approx(problems.nll_by_item([answers]).mean())
    assert scaled["validation_nll"] is None and thinking["validation_nll"] is not None
    assert set(result["training"]) == {"init", "1"}
    assert result["training"]["init"]["flops"] == 0 < result["training"]["1"]["flops"]
    # In a table a checkpoint is shown for one variant only.
    other = dataclasses.replace(cell, variant="b")
    table = results.lines([cell, other], [result, result])
    assert [(line.variant, line.stage) for line in table] == [
        ("a", "init"), ("a", "init"), ("a", "1"), ("b", "1")
    ]  # fmt: skip
