"""Brackets: what they refuse, their folders, and that validation items alone choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import brackets, choosing, sheet
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps import results as results_lib
from fqs_jax.sweeps import table as table_lib
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.choosing import Choice, Score, Tried
from fqs_jax.sweeps.variants import variant
from tests.sweeps.invented import row, sweep, write_result

RATES = ("1e-3", "1e-2", "3e-2")
BRACKET = tuple(f"stage_1.learning_rate={rate}" for rate in RATES)


def bracketed(place: Path, **fields: Any) -> list[Cell]:
    """Cells of a variant without a bracket and one with three settings, two seeds each."""
    both = (variant("a", stages="0,1"), variant("b", stages="0,1", bracket=BRACKET))
    return cells_lib.read(sweep(variants=both, **fields), place)


# cells --------------------


def test_every_setting_is_a_cell_for_each_seed():
    cells = bracketed(Path("W"))
    assert [cell.number for cell in cells] == list(range(8))
    assert [(c.variant, c.setting, c.seed) for c in cells] == [
        *(("a", (), seed) for seed in (0, 3)),
        *(("b", (setting,), seed) for setting in BRACKET for seed in (0, 3)),
    ]
    assert [cell.judged for cell in cells] == [None] * 2 + [1] * 6
    assert str(cells[1].folder) == "W/cells/a/seed_3"
    assert str(cells[4].folder) == "W/cells/b/stage_1.learning_rate=1e-2/seed_0"
    assert cells[4].overrides == ("seed=0", "data.num_documents=500", BRACKET[1])
    assert str(cells[4]) == f"cell 4 (b, {BRACKET[1]}, seed 0)"


def test_a_folder_depends_on_its_setting_alone():
    assert brackets.folder(("a.b=1e-3", "c=True")) == "a.b=1e-3,c=True"
    odd = [
        brackets.folder((f"data.text={value}",)) for value in ("/x y", "/x*y", "x" * 90, "x" * 91)
    ]
    assert len(set(odd)) == 4 and max(map(len, odd)) <= 80
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._=-") for name in odd)


@pytest.mark.parametrize(
    ("bracket", "complaint"),
    [
        (BRACKET[:1], "its bracket has one setting, stage_1.learning_rate=1e-3; give more"),
        (BRACKET[0], "its bracket has one setting"),
        ((BRACKET[0], "stage_1.steps=3"), "name different fields; a bracket is of one thing"),
        ((BRACKET[0], (BRACKET[1], "stage_1.steps=3")), "name different fields"),
        ((BRACKET[0], "stage_1.learning_rate=0.001"), "are the same"),
        ((BRACKET[0], ()), "names no field"),
        ((BRACKET[0], "stage_1.learning_rate=x"), "stage_1.learning_rate=x"),
        (("stage_1.learning_rat=1", "stage_1.learning_rat=2"), "no field 'learning_rat'"),
        (("stage_1.n_ahead=7", "stage_1.n_ahead=6"), "set by its overrides and by its bracket"),
    ],
)
def test_refused_brackets(bracket, complaint):
    changed = variant("a", "stage_1.n_ahead=6", stages="0,1", bracket=bracket)
    with pytest.raises(UserError, match=complaint) as error:
        cells_lib.read(sweep(variants=(changed,)), Path("W"))
    assert "\n" not in str(error.value) and str(error.value).startswith("variant a: ")


def test_a_bracket_chooses_for_one_stage():
    """A stage and its control are two variants: one setting cannot be the best for both."""
    both = variant("a", stages="0,1,4", bracket=("batch_size=16", "batch_size=32"))
    with pytest.raises(UserError, match=r"choose for stage 1 \(.*\) and stage 4 \(.*\) at once"):
        cells_lib.read(sweep(variants=(both,)), Path("W"))
    control = variant(
        "a", stages="0,4", bracket=("stage_4.learning_rate=1", "stage_4.learning_rate=2")
    )
    cells = cells_lib.read(sweep(variants=(control,)), Path("W"))
    assert {cell.judged for cell in cells} == {4}


# choosing --------------------

# Of each setting: on validation and on test problems, which disagree.
VALIDATION, TEST = (0.5, 0.7, 0.6), (0.9, 0.2, 0.95)


def write_all(cells: list[Cell]) -> None:
    for cell in cells:
        place = BRACKET.index(cell.setting[0]) if cell.setting else 0
        shift = 0.01 * cell.seed
        checked = {"validation_accuracy": VALIDATION[place] - shift, "validation_nll": 1.0}
        base = {"validation_accuracy": 1 - VALIDATION[place], "validation_nll": 2.0}
        rows = [row("0", "base", 0.1, 2.0, **base)]
        rows.append(row("1", "think-8-2", TEST[place] - shift, 1.5, **checked))
        write_result(cell, rows)


def choices_of(cells: list[Cell]) -> tuple[list[dict[str, Any] | None], dict[str, Choice]]:
    results = [results_lib.read(cell) for cell in cells]
    return results, choosing.choose(cells, list(map(results_lib.score, cells, results)))


def test_validation_chooses_and_test_is_reported(tmp_path):
    cells = bracketed(tmp_path)
    write_all(cells)
    results, choices = choices_of(cells)
    assert choices["b"].chosen == (BRACKET[1],) and not choices["b"].is_at_edge
    kept, kept_results = zip(*choosing.shown(cells, results, choices), strict=True)
    table = results_lib.lines(kept, kept_results, (0,))
    assert [(line.variant, line.stage, line.setting) for line in table] == [
        ("a", "0", ""),
        ("a", "1", ""),
        ("b", "1", BRACKET[1]),
    ]
    # The worst setting on test problems, and shown as such.
    assert table[2].accuracy == pytest.approx((0.2, 0.17)) and table[2].planned == 2
    assert choosing.notes(choices) == [
        f"b: {BRACKET[1]} was chosen of 3 settings, by the accuracy of stage 1 on validation items, 0.685"
    ]
    [told] = map(choosing.as_json, choices.values())
    assert [each["chosen"] for each in told["settings"]] == [False, True, False]
    assert told["settings"][2]["validation_accuracy"] == pytest.approx([0.6, 0.57])


def written(lines: list[results_lib.Line]) -> list[str]:
    return sheet.markdown(table_lib.sheet(lines), []).splitlines()


def test_the_table_has_a_column_of_settings_only_with_a_bracket(tmp_path):
    cells = bracketed(tmp_path)
    write_all(cells)
    results, choices = choices_of(cells)
    kept, kept_results = zip(*choosing.shown(cells, results, choices), strict=True)
    lines = written(results_lib.lines(kept, kept_results, (), ["b"]))
    assert lines[0].startswith("| variant | setting | model | seeds |")
    assert lines[3].startswith("| a | - | think-8-2 | 2 |")
    assert lines[5].startswith(f"| b | {BRACKET[1]} (edge) | think-8-2 | 2 | 0.185 ")
    assert len({line.count("|") for line in lines[:6]}) == 1 and "validation items" in lines[7]
    without = written(results_lib.lines(kept[:2], kept_results[:2]))
    assert without[0].startswith("| variant | model | seeds |")
    assert "validation" not in without[-1]


def test_an_unfinished_bracket(tmp_path):
    """The best setting lacks a seed: the next one is chosen, at the edge, and a note says both."""
    cells = bracketed(tmp_path)
    write_all([cell for cell in cells if cell.number != 5])
    results, choices = choices_of(cells)
    assert choices["b"].chosen == (BRACKET[2],) and choices["b"].is_at_edge
    [note] = choosing.notes(choices)
    assert "warning: it lies at the edge of its bracket" in note
    assert note.endswith("unfinished: 1 of 6 cells are not done")


def test_nothing_is_chosen_before_a_setting_is_complete(tmp_path):
    cells = bracketed(tmp_path)
    write_all([cell for cell in cells if cell.seed == 0])
    results, choices = choices_of(cells)
    assert choices["b"].chosen is None
    kept, kept_results = zip(*choosing.shown(cells, results, choices), strict=True)
    table = results_lib.lines(kept, kept_results)
    assert table_lib.texts(table[-1])[:3] == ["b", "not done yet", "0 of 2"]
    assert "none is chosen; unfinished: 3 of 6 cells" in choosing.notes(choices)[0]
    json.dumps(results_lib.as_json(table[-1]), allow_nan=False)


def tried(*scores: tuple[float, float]) -> list[Tried]:
    return [Tried((f"x={n}",), 1, (Score(*score),)) for n, score in enumerate(scores)]


def test_ties_and_what_could_not_be_measured():
    nan = np.nan
    assert choosing.best(tried((0.5, 1.0), (0.5, 0.9), (0.5, 1.1))) == ("x=1",)
    assert choosing.best(tried((nan, nan), (0.0, 9.0))) == ("x=1",)
    assert choosing.best(tried((nan, nan), (nan, nan))) is None
    assert choosing.best(tried((nan, nan), (nan, 9.0))) == ("x=1",)
    assert choosing.best(tried((0.5, nan), (0.5, 9.0))) == ("x=1",)
    assert choosing.best(tried((0.6, 1.0), (0.5, 0.9), (0.4, 0.9)), "nll") == ("x=1",)


def test_edges_are_of_numbers():
    numbers = (("x=1e-3", "y=1"), ("x=3e-2", "y=1"), ("x=0.01", "y=1"))
    assert [brackets.is_at_edge(each, numbers) for each in numbers] == [True, True, False]
    words = (("x=linear",), ("x=sigmoid",))
    assert not any(brackets.is_at_edge(each, words) for each in words)


def test_an_old_result_without_validation_is_never_chosen(tmp_path):
    cells = bracketed(tmp_path)
    write_all([cell for cell in cells if cell.setting != (BRACKET[1],)])
    for cell in cells:
        if cell.setting == (BRACKET[1],):
            write_result(cell, [row("1", "think-8-2", 0.99, 0.1)])
    assert choices_of(cells)[1]["b"].chosen == (BRACKET[2],)
