"""The initial model of a working directory, and who may replace it."""

import json

import pytest

from fqs_jax.runs import folders, source
from fqs_jax.runtime import locks
from fqs_jax.runtime.errors import UserError
from fqs_jax.training import loop
from tests.tiny_runs import clock_config, save_stage
from tests.training.test_loop import run_of, stage_of


def seed_of(root):
    return json.loads((folders.source_folder(root) / "origin.json").read_text())["seed"]


def test_the_model_under_a_stage_that_has_saved_nothing_yet_is_left_alone(tmp_path):
    source.prepare(tmp_path, clock_config())
    other = clock_config({"seed": 1})
    with (
        locks.held(folders.stage_folder(tmp_path, 0)),
        pytest.raises(UserError, match=r"stage_0 is in use by process \d+ on .*another --workdir"),
    ):
        source.prepare(tmp_path, other)
    assert seed_of(tmp_path) == 0
    source.prepare(tmp_path, other)  # that stage was given up
    assert seed_of(tmp_path) == 1


def test_a_check_refuses_what_a_start_refuses_and_writes_nothing(tmp_path):
    config, other = clock_config(), clock_config({"seed": 1})
    source.check(tmp_path, config)
    assert not any(tmp_path.iterdir())
    save_stage(tmp_path, config, 0)
    source.check(tmp_path, config)
    for refuse in (source.check, source.prepare):
        with pytest.raises(
            UserError, match="begun with seed=0, now it is 1; use another --workdir"
        ):
            refuse(tmp_path, other)
    assert seed_of(tmp_path) == 0
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a Hugging Face folder"):
        source.check(tmp_path, config)


def test_a_source_that_another_run_replaced_is_noticed(tmp_path):
    config, other = clock_config(), clock_config({"seed": 1})
    source.prepare(tmp_path, config)
    source.check_unchanged(tmp_path, config)
    source.prepare(tmp_path, other)
    with pytest.raises(
        UserError, match=r"another run has replaced .*source .*\(seed=0, now it is 1\)"
    ):
        source.check_unchanged(tmp_path, config)


def test_a_stage_notices_it_before_it_trains(tmp_path):
    config = clock_config()
    run = run_of(tmp_path, config)
    recipe = stage_of(run, 0)
    source.prepare(tmp_path, clock_config({"seed": 1}))
    with pytest.raises(UserError, match="another run has replaced"):
        loop.run_stage(run, recipe)
    assert folders.saved_step(tmp_path, 0) is None
