"""Sweeps: cells, refusals, the sums in the table, and the program as a user runs it."""

import dataclasses
import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fqs_jax.curriculum import objective, resolve
from fqs_jax.data import corpus
from fqs_jax.evaluation import problems
from fqs_jax.runs import folders, loading, source
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps import fields, measuring, overview, sheet
from fqs_jax.sweeps import results as results_lib
from fqs_jax.sweeps import table as table_lib
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.variants import variant
from tests.conftest import REPO
from tests.sweeps.invented import row, sweep, write_result
from tests.tiny_runs import clock_config, refusal, run, save_stage

# cells --------------------


def test_cells_are_variants_times_seeds():
    cells = cells_lib.read(sweep(), Path("W"))
    assert [(c.number, c.variant, c.seed, c.stage_numbers) for c in cells] == [
        (0, "plain", 0, tuple(range(10))),
        (1, "plain", 3, tuple(range(10))),
        (2, "short", 0, (0, 1)),
        (3, "short", 3, (0, 1)),
    ]
    assert cells[3].command == (
        "python -m fqs_jax.launch --config=configs/shorten.py --config.seed=3 "
        "--config.data.num_documents=500 --config.stage_1.n_ahead=6 --stage=1,base "
        "--workdir=W/cells/short/seed_3"
    )


SWEEPS = REPO / "configs" / "sweeps"
ONES = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60}


def stated_cells(text: str) -> int:
    """The number in front of "cells": in figures, or in words up to sixty-nine."""
    [word] = re.findall(r"(\S+) cells", text.lower())
    tens, _, ones = word.partition("-") if word.split("-")[0] in TENS else ("", "", word)
    return int(word) if word.isdigit() else TENS.get(tens, 0) + ONES.index(ones)


@pytest.mark.parametrize("name", sorted(p.stem for p in SWEEPS.glob("*.py") if p.stem[0] != "_"))
def test_the_sweeps_of_the_project_have_the_cells_that_they_state(name):
    module = importlib.import_module(f"configs.sweeps.{name}")
    config = module.get_config()
    assert stated_cells(module.get_config.__doc__) == len(config.seeds) * sum(
        len(bracket) or 1 for _, _, _, bracket in config.variants
    )
    if "init_from" not in config:  # the others need a checkpoint
        cells = cells_lib.read(config, Path("W"))
        assert len({cell.folder for cell in cells}) == len(cells)


def test_fields_that_may_be_left_out():
    cells = cells_lib.read(sweep(overrides=None, show_once=None), Path("W"))
    assert cells[0].overrides == ("seed=0",)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"seed": (0,)}, "unknown field 'seed'; it may have config, seeds"),
        ({"seeds": None}, "no field 'seeds'"),
        ({"seeds": ()}, "seeds are empty"),
        ({"seeds": 5}, r"seeds is 5; give a tuple"),
        ({"seeds": (0, -1)}, "seed -1 is no whole number"),
        ({"seeds": (1, 1)}, "seed 1 is listed twice"),
        ({"variants": ()}, "variants are empty"),
        ({"variants": (variant("a"), variant("A"))}, "two variants of the sweep are named 'a'"),
        ({"variants": (variant("a/b"),)}, "variant 'a/b' cannot name a folder"),
        ({"variants": (variant(".."),)}, "variant '..' cannot name a folder"),
        ({"variants": (("a", "seed=1", "all", ()),)}, "make it with variant"),
        ({"variants": (("a", ()),)}, "make it with variant"),
        ({"variants": (variant("a", "thought.mixin=linear"),)}, "variant a: .* no field 'mixin'"),
        ({"variants": (variant("a", "thought.mixing=no"),)}, "variant a: .*'no'"),
        ({"variants": (variant("a", "stage_0.steps=x"),)}, "variant a: .*stage_0.steps=x"),
        ({"variants": (variant("a", "mixing"),)}, "variant a: .*not of the form field=value"),
        (
            {"variants": (variant("a", "seed=1"),)},
            "variant a: .*seeds are set by the sweep's own field",
        ),
        ({"variants": (variant("a", stages="0,19"),)}, "variant a: there is no stage '19'"),
        ({"variants": (variant("a", stages="0,2"),)}, "variant a: stage 2 .* made from stage 1"),
        ({"variants": (variant("a", stages="0,7"),)}, "variant a: stage 7 .* made from stage 6"),
        ({"show_once": (18,)}, "variant plain: stage 18, named in show_once, does not exist"),
        ({"config": "configs/none.py"}, "variant plain: cannot read the config: No such file"),
        (
            {"config": "configs/small_hf.py"},
            "variant plain: data.source is 'text', so the experiment needs a checkpoint: give the sweep "
            "--config.init_from=HF_DIR",
        ),
        ({"variants": (variant("a", "init_from=HF"),)}, "variant a: HF is not a folder"),
        (
            {"variants": (variant("a", "requires_init_from=True"),)},
            "variant a: the experiment needs a checkpoint: give the sweep --config.init_from=HF_DIR",
        ),
        ({"overrides": (1,)}, 'override 1 is no text "field=value"'),
        ({"show_once": ("0",)}, "show_once has '0'; give numbers of stages"),
        ({"choose_by": "loss"}, "choose_by is 'loss'; choose from accuracy, nll"),
        (
            {"held_out": "x.txt"},
            "variant plain: data.source is 'clock', whose own problems compare",
        ),
    ],
)
def test_refusals(changes, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        cells_lib.read(sweep(**changes), Path("W"))
    assert "\n" not in str(error.value)


# results --------------------


ACCURACIES = np.random.default_rng(0).uniform(size=(2, 3, 2))  # variants, seeds, stages


@pytest.fixture
def measured(tmp_path):
    """Two variants and three seeds; the last cell is not done."""
    config = sweep(
        seeds=(0, 1, 5), variants=(variant("a", stages="0,1"), variant("b", stages="0,1"))
    )
    cells = cells_lib.read(config, tmp_path)
    for cell in cells[:-1]:
        base, thinking_ = ACCURACIES["ab".index(cell.variant), (0, 1, 5).index(cell.seed)]
        rows = [
            row("0", "base", base, 2.0 + cell.seed),
            row(
                "0",
                f"base at temperature {2 + cell.seed}.00",
                base,
                1.9,
                temperature=2.0 + cell.seed,
            ),
            row("1", "think-8-2", thinking_, 1.0 + cell.seed),
        ]
        write_result(cell, rows)
    return cells


def test_lines_are_means_and_standard_errors_over_seeds(measured):
    results = [results_lib.read(cell) for cell in measured]
    table = results_lib.lines(measured, results)
    names = ["base", "base at its best temperature", "think-8-2"]
    assert [(line.variant, line.model) for line in table] == [(v, n) for v in "ab" for n in names]
    last = table[-1]
    values = ACCURACIES[1, :2, 1]  # seed 5 is not done
    written = results_lib.as_json(last)
    assert written["accuracy_mean"] == pytest.approx(values.mean())
    # Two values: the standard error of their mean is half their distance.
    assert written["accuracy_standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert (written["nll_mean"], written["nll_standard_error"]) == (1.5, pytest.approx(0.5))
    assert last.seeds == (0, 1) and last.planned == 3
    assert (last.tokens, last.flops, last.after_base_flops) == (101, 1001, 1)
    three = ACCURACIES[0, :, 1]
    expected = math.sqrt(sum((three - three.mean()) ** 2) / 2 / 3)
    assert results_lib.standard_error(table[2].accuracy) == pytest.approx(expected)
    assert math.isnan(results_lib.standard_error([0.5]))


def test_what_could_not_be_measured_is_null_in_json():
    line = results_lib.Line("a", "0", "base", "base", 2, (0, 1), (math.nan, 0.5), (1.0, 2.0))
    written = results_lib.as_json(line)
    assert written["accuracy"] == [None, 0.5] and written["accuracy_mean"] is None
    json.dumps(written, allow_nan=False)


def test_a_stage_is_shown_once(measured):
    results = [results_lib.read(cell) for cell in measured]
    table = results_lib.lines(measured, results, (0,))
    assert [(line.variant, line.stage) for line in table] == [
        ("a", "0"),
        ("a", "0"),
        ("a", "1"),
        ("b", "1"),
    ]
    # The hidden bases differ from the shown ones, and a note reports it.
    notes = results_lib.unlike(measured, results, (0,))
    assert [re.findall(r"of b, seed (\d)", note) for note in notes] == [["0"], ["1"]]
    only_a = [r if c.variant == "a" else None for c, r in zip(measured, results, strict=True)]
    assert not results_lib.unlike(measured, only_a, (0,))


def test_what_is_missing_is_marked(measured):
    results = [results_lib.read(cell) for cell in measured]
    nothing_of_b = [r if c.variant == "a" else None for c, r in zip(measured, results, strict=True)]
    table = results_lib.lines(measured, nothing_of_b)
    assert table_lib.texts(table[-1])[:3] == ["b", "not done yet", "0 of 3"]
    notes = results_lib.about(measured, results, "COMMAND")
    assert notes == [
        "Commit abc; made by: COMMAND",
        "Not done, 1 of 6: cell 5 (b, seed 5)",
    ]


def test_a_result_of_another_command_does_not_count(measured):
    changed = dataclasses.replace(measured[0], overrides=("seed=0", "data.num_documents=600"))
    assert results_lib.read(changed) is None and results_lib.is_stale(changed)
    moved = dataclasses.replace(measured[0], stages="0,1")  # elsewhere, but the same
    assert results_lib.read(moved) and not results_lib.is_stale(moved)
    assert not results_lib.is_stale(measured[-1])


def test_files_of_the_table(measured, tmp_path):
    results = [results_lib.read(cell) for cell in measured]
    found = overview.make(fields.read(sweep(show_once=())), measured, results, "COMMAND")
    sheet.write(tmp_path, found.sheet, ["a note"], found.content, found.figure)
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["lines"]) == 6 and written["missing_cells"] == [5]
    text = (tmp_path / "results.md").read_text().splitlines()
    assert len({line.count("|") for line in text[:8]}) == 1 and text[-1] == "a note"
    mean = ACCURACIES[0, :, 1].mean()
    assert f"| a | think-8-2 | 3 | {mean:.3f} \u00b1 " in text[4]
    assert "| 2 of 3 |" in text[7]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_every_seed(measured):
    table = results_lib.lines(measured, [results_lib.read(cell) for cell in measured])
    [axes] = table_lib.draw(table).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["a: base", "a: think-8-2", "b: base", "b: think-8-2"]
    dots = [c.get_offsets()[:, 0] for c in axes.collections if len(c.get_offsets()) > 1]
    drawn = [ACCURACIES[0, :, 0], ACCURACIES[0, :, 1], ACCURACIES[1, :2, 0], ACCURACIES[1, :2, 1]]
    assert len(dots) == 4 and all(map(np.allclose, dots, drawn))


def test_a_cell_is_evaluated(tmp_path):
    """Only rows of its stages, untimed; costs of training against sums by hand."""
    config = clock_config({"data.clock.lengths": (1,)})
    cell = Cell(0, "a", 0, tmp_path / "cell", "c.py", ("seed=0",), "0,2,3", (0, 2, 3))
    for number in range(4):
        save_stage(cell.folder, config, number, seed=number)
    result = measuring.evaluate(cell)
    assert result == json.loads((cell.folder / "result.json").read_text())
    assert [r["stage"] for r in result["rows"]] == ["0", "0", "2", "3"]
    assert all(r["ms_per_token"] is None and 0 <= r["accuracy"] <= 1 for r in result["rows"])
    _check_validation(cell, result)
    assert result["chance"] == 1 / 7 and re.fullmatch(
        r"([0-9a-f]{10}(-changed)?)?", result["commit"]
    )
    model = source.read_model(folders.source_folder(cell.folder), config)
    recipes = resolve.recipes(config, model)
    *_, short, student = recipes
    asking = objective.teacher_flops(student, short.thought)
    flops = [6 * objective.step_flops(recipe) for recipe in recipes]
    flops[3] += 6 * asking
    tokens = 6 * 2 * 16  # steps, rows, tokens of a row
    assert result["training"] == {
        "0": {"tokens": tokens, "flops": flops[0], "after_base_flops": 0},
        "2": {
            "tokens": 3 * tokens,
            "flops": sum(flops[:3]),
            "after_base_flops": flops[1] + flops[2],
        },
        # It starts from the base, which its teacher is made from too.
        "3": {"tokens": 4 * tokens, "flops": sum(flops), "after_base_flops": sum(flops[1:])},
    }


def _check_validation(cell: Cell, result: dict[str, Any]) -> None:
    """The thinking model's answers to validation problems, read again and averaged here."""
    task = corpus.built_in_task(clock_config({"data.clock.lengths": (1,)}).data, 0)
    assert task is not None
    [answers] = problems.read(loading.load(str(cell.folder), "2"), task, "validation", thoughts=4)
    right = answers.log_probs_RxNxAxC[
        :, np.arange(answers.right_NxA.size), 0, answers.right_NxA[:, 0]
    ]
    hits = answers.log_probs_RxNxAxC[:, :, 0].argmax(-1) == answers.right_NxA[:, 0]
    found = result["rows"][2]
    assert found["stage"] == "2" and found["validation_nll"] == pytest.approx(-right.mean())
    assert found["validation_accuracy"] == pytest.approx(hits.mean())
    assert found["validation_nll"] != found["nll"]


# the program --------------------

EXPERIMENT = "from tests.tiny_runs import clock_config as get_config\n"
SWEEP = """
import ml_collections
from fqs_jax.sweeps import variant

def get_config():
    bad = variant("bad", stages="0", bracket=("microbatches=3", "microbatches=1"))
    variants = (variant("good", stages="1,0"), bad)
    fields = {"config": EXPERIMENT, "seeds": (1,), "variants": variants, "show_once": ()}
    return ml_collections.ConfigDict(fields)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Flags of a sweep of three cells; the second one fails when it starts to train."""
    place = tmp_path_factory.mktemp("sweep")
    (place / "experiment.py").write_text(EXPERIMENT)
    (place / "sweep.py").write_text(SWEEP.replace("EXPERIMENT", repr(str(place / "experiment.py"))))
    return f"--config={place / 'sweep.py'}", f"--workdir={place / 'W'}"


@pytest.mark.exhaustive
def test_flags(given):
    listed = run("sweep", *given, "--list").stdout.splitlines()
    assert [line.split(" ", 2)[:2] for line in listed] == [[str(n), "python"] for n in range(3)]
    assert listed[1].endswith("/cells/bad/microbatches=3/seed_1")
    assert "cell 3 does not exist; cells are numbered 0 to 2" in refusal(
        "sweep", *given, "--cell=3"
    )
    assert "no cell of this sweep is done" in refusal("sweep", *given, "--table")
    assert "--jobs is for all cells" in refusal("sweep", *given, "--cell=0", "--jobs=2")
    assert not Path(given[1].split("=")[1]).exists()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sweep_from_start_to_table(given):
    root = Path(given[1].split("=")[1])
    done = run("sweep", *given, "--jobs=2", code=2)
    *_, cause, error = done.stderr.splitlines()
    assert error == "error: 1 of 3 cells failed; run the same command again to retry them"
    failed = "cell 1 (bad, microbatches=3, seed 1) failed, code 2: error: "
    assert cause.startswith(failed) and "microbatches" in cause.removeprefix(failed)
    assert "cell 0 (good, seed 1) is done" in done.stderr and "Not done, 1 of 3" in done.stdout
    result = json.loads((root / "cells/good/seed_1/result.json").read_text())
    assert [r["steps"] for r in result["rows"]] == [6, 6, 6]
    page = (root / "results.md").read_text()
    assert "| bad | microbatches=1 (edge) | base at its best temperature | 1 |" in page
    assert "unfinished: 1 of 2 cells are not done" in page
    # Done is done: the good one is not touched again.
    (root / "cells/good/seed_1/log.txt").unlink()
    again = run("sweep", *given, "--cell=0")
    assert "cell 0 (good, seed 1) is done" in again.stderr
    again = run("sweep", *given, code=2)
    assert "2 of 3 cells are done" in again.stderr
    assert not (root / "cells/good/seed_1/log.txt").exists()
