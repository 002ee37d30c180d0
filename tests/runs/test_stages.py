"""Stages that others need: what is missing, and the command that runs it."""

import pytest

from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import stages
from fqs_jax.runtime import agreement
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, save_stage


@pytest.fixture
def rows() -> list[Stage]:
    """0 base; 1 starts from 0; 2 from 1; 3 from 0, taught by 2."""
    return stage_lib.rows(clock_config())


def lacking(root, rows, which):
    """The value of --stage that an error suggests; None without an error."""
    try:
        chosen = stage_lib.select(rows, which)
        stages.check_needed(root, rows, chosen, lambda given: f"launch --stage={given}")
    except UserError as error:
        assert "\n" not in str(error)
        return str(error).partition("run all of them with: launch --stage=")[2]
    return None


@pytest.mark.parametrize(
    ("which", "all_of_them"),
    [
        ("0", None),
        ("1", "0,1"),
        ("3", "0,1,2,3"),  # the teacher's own start too
        ("2,3", "0,1,2,3"),
        ("0,1", None),
        ("0,2", "0,1,2"),
        ("..2", None),
        ("all", None),
    ],
)
def test_in_an_empty_folder_all_that_a_stage_builds_on_is_missing(
    tmp_path, rows, which, all_of_them
):
    assert lacking(tmp_path / "W", rows, which) == all_of_them


def test_finished_stages_are_not_missing_nor_what_they_built_on(tmp_path, rows):
    root, config = tmp_path / "W", clock_config()
    save_stage(root, config, 1)
    assert lacking(root, rows, "2") is None  # stage 0 was removed, and nothing reads it
    assert lacking(root, rows, "3") == "0,2,3"
    save_stage(root, config, 0, step=4)  # of 6
    assert lacking(root, rows, "3") == "0,2,3"
    save_stage(root, config, 2)
    save_stage(root, config, 3, step=2)  # it began, so it resumes from its own checkpoint
    assert lacking(root, rows, "3") is None


def test_the_message_names_what_is_missing(tmp_path, rows):
    chosen = stage_lib.select(rows, "2")
    expected = r"stage 2 \(think-4-1\) cannot start before stage 0 \(base\), stage 1 \(think-5-2\)"
    with pytest.raises(UserError, match=expected):
        stages.check_needed(tmp_path, rows, chosen, str)


def test_process_0_decides_for_hosts_that_see_a_file_late(tmp_path, rows, monkeypatch):
    """As on another process, which does no work of process 0 and takes its numbers."""
    monkeypatch.setattr(agreement, "on_main", lambda work: None)
    for numbers, expected in (([], None), ([0], "0,1")):
        monkeypatch.setattr(agreement, "agreed", lambda own, numbers=numbers: own or numbers)
        assert lacking(tmp_path, rows, "1") == expected
