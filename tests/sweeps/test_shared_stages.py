"""Stages that cells share: which are the same, and that a copy is what was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fqs_jax.runs import folders, record
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps import shared_stages
from fqs_jax.sweeps.cells import Cell
from fqs_jax.sweeps.variants import variant
from tests.sweeps.invented import sweep
from tests.tiny_runs import save_stage

RATES = ("stage_1.learning_rate=0.1", "stage_1.learning_rate=0.2")


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    """Settings that change stage 1, one that changes stage 0, and one that may change everything."""
    variants = (
        variant("think", stages="0,1", bracket=RATES),
        variant("control", "stage_4.learning_rate=0.3", stages="0,4"),
        variant("base", "stage_0.learning_rate=0.3", stages="0,1"),
        variant("mixing", "thought.mixing=linear", stages="0,1"),
    )
    return cells_lib.read(sweep(variants=variants, show_once=()), tmp_path)


def trained(cell: Cell, number: int, step: int = 0) -> None:
    config = cells_lib.experiment_config(cell.config, cell.overrides[1:])
    config.seed = cell.seed
    save_stage(cell.folder, config, number, seed=cell.seed + 1, step=step)


def test_only_what_other_fields_cannot_change_is_copied(cells: list[Cell]) -> None:
    trained(cells[0], 0)
    trained(cells[0], 1)
    copied = [cell.number for cell in cells if shared_stages.copy(cell, cells)]
    # Two rates and the control share a base with seed 0; seed 3 has none, which is every other cell.
    assert copied == [2, 4]
    assert [folders.stage_numbers(cells[n].folder) for n in copied] == [[0], [0]]
    assert shared_stages.copy(cells[2], cells) == []  # it has the stage now


def test_a_stage_is_copied_with_those_that_it_is_made_from(tmp_path: Path) -> None:
    """Shorter thoughts share the long ones they start from; where those differ, the base alone."""
    variants = (
        variant("short", stages="0,1,2", bracket=("stage_2.steps=1", "stage_2.steps=2")),
        variant("other", "stage_1.learning_rate=0.3", stages="0,1,2"),
        variant("control", stages="0,5"),  # costs as much as stages 1 to 3, which it does not train
        variant("same", "stage_6.steps=9", stages="0,5"),
        variant("another", "stage_3.steps=9", stages="0,5"),
    )
    cells = cells_lib.read(sweep(variants=variants, show_once=()), tmp_path)
    [one, two, other, control, same, another] = [cell for cell in cells if cell.seed == 0]
    for cell, numbers in {one: (0, 1, 2), control: (0, 5)}.items():
        for number in numbers:
            trained(cell, number)
    has = lambda cell: folders.stage_numbers(cell.folder)  # noqa: E731
    for cell in (two, other, same, another):
        shared_stages.copy(cell, cells)
    assert (has(two), has(other), has(same), has(another)) == ([0, 1], [0], [0, 5], [0])
    config = cells_lib.experiment_config(two.config, two.overrides[1:])
    record.write(two.folder, config, folders.existing_stages(two.folder)[1])


def test_a_student_s_teacher_is_of_its_own_base(tmp_path: Path) -> None:
    """A cell that trained a base takes no stage that another cell made from its own."""
    variants = (variant("short", stages="0,1", bracket=("stage_2.steps=1", "stage_2.steps=2")),)
    one, _, two, _ = cells = cells_lib.read(sweep(variants=variants, show_once=()), tmp_path)
    trained(one, 0)
    trained(one, 1)
    trained(two, 0)
    assert shared_stages.copy(two, cells) == []


def test_a_copy_is_what_was_trained(cells: list[Cell]) -> None:
    trained(cells[0], 0)
    [note] = shared_stages.copy(cells[2], cells)
    assert note == (
        "cell 2 (think, stage_1.learning_rate=0.2, seed 0): stage 0 (base) is that of "
        "cell 0 (think, stage_1.learning_rate=0.1, seed 0)"
    )
    old, new = (folders.stage_folder(cells[n].folder, 0) for n in (0, 2))
    files = [path.relative_to(old) for path in old.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert all((new / name).read_bytes() == (old / name).read_bytes() for name in files)
    # As `launch` compares it with the cell's command, it is the stage that the command asks for.
    config = cells_lib.experiment_config(cells[2].config, cells[2].overrides[1:])
    [stage] = folders.existing_stages(cells[2].folder)
    record.write(cells[2].folder, config, stage)
    with pytest.raises(UserError, match="begun with config.model.num_layers=2, now it is 3"):
        config.model.num_layers += 1
        record.write(cells[2].folder, config, stage)


def test_an_unfinished_stage_is_not_copied(cells: list[Cell]) -> None:
    trained(cells[0], 0, step=3)
    assert shared_stages.copy(cells[2], cells) == []
    assert not cells[2].folder.exists()


def test_a_copy_that_was_cut_off_is_made_again(cells: list[Cell]) -> None:
    trained(cells[0], 0)
    left = cells[2].folder / ".stage_0.partial"
    left.mkdir(parents=True)
    (left / "run.json").write_text("{")
    assert shared_stages.copy(cells[2], cells)
    assert not left.exists() and folders.existing_stages(cells[2].folder)


def test_other_experiments_are_other_stages(cells: list[Cell]) -> None:
    trained(cells[0], 0)
    other = dataclasses.replace(cells[2], config="configs/internalize.py")
    assert shared_stages.copy(other, cells) == []
