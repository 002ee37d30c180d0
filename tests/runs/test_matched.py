"""Controls that match stages which were trained with settings of their own."""

import shutil

import pytest

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.stage import row, select
from fqs_jax.runs import folders, matched, source
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, refusal, run, save_stage

# Two plain controls of stage 1, of which the first matches its tokens and the second its FLOPs.
CONTROLS = {4: {"same_steps_as": (1,)}, 5: {"same_flops_as": (1,)}}


def with_controls(**changes):
    config = clock_config(changes)
    for number, match in CONTROLS.items():
        config[f"stage_{number}"] = row(
            f"plain-{number}", "next_token", start=0, control=True, **match
        )
    return config


def check(root, config, which, max_steps=None):
    model, _ = source.prepare(root, config)
    recipes = resolve.recipes(config, model, max_steps)
    chosen = select([recipe.stage for recipe in recipes], which)
    matched.check(root, recipes, chosen, max_steps)


@pytest.mark.parametrize("number", CONTROLS)
def test_a_control_of_a_stage_with_steps_of_its_own_is_refused_until_it_has_them(tmp_path, number):
    config, longer = with_controls(), with_controls(**{"stage_1.steps": 12})
    check(tmp_path, config, str(number))  # nothing is trained yet
    save_stage(tmp_path, longer, 1)
    own = {n: len_of(tmp_path, config, number, n) for n in ("now", 12)}
    expected = (
        rf"stage {number} \(plain-{number}\) would take {own['now']} steps, to match the \w+ of stage 1 "
        rf".*; as trained in .*, {own[12]} steps match"
    )
    with pytest.raises(UserError, match=expected):
        check(tmp_path, config, str(number))
    check(tmp_path, longer, str(number))
    check(tmp_path, config, "0,2,3")  # these match nothing


def len_of(root, config, number, steps):
    """The steps of a control, worked out from another number of steps of stage 1."""
    changes = {} if steps == "now" else {"stage_1.steps": steps}
    config = with_controls(**changes)
    model, _ = source.prepare(root, config)
    return resolve.find(resolve.recipes(config, model), str(number)).stage.steps


def test_longer_thoughts_of_the_trained_stage_cost_more_flops_and_no_tokens(tmp_path):
    config = with_controls()
    save_stage(tmp_path, with_controls(**{"stage_1.n_ahead": 8}), 1)
    check(tmp_path, config, "4")
    with pytest.raises(UserError, match="to match the FLOPs of stage 1"):
        check(tmp_path, config, "5")


def test_a_chosen_stage_is_trained_on_and_one_that_is_longer_stays(tmp_path):
    config = with_controls()
    steps = config.stage_1.steps
    save_stage(tmp_path, with_controls(**{"stage_1.steps": steps - 2}), 1)
    check(tmp_path, config, "1,4")
    with pytest.raises(UserError, match=f"as trained in .*, {steps - 2} steps match"):
        check(tmp_path, config, "4")
    save_stage(tmp_path / "longer", with_controls(**{"stage_1.steps": steps + 5}), 1)
    with pytest.raises(UserError, match="to match the tokens of stage 1"):
        check(tmp_path / "longer", config, "1,4")


def test_a_stage_that_is_not_done_counts_as_the_config_will_train_it(tmp_path):
    save_stage(tmp_path, with_controls(**{"stage_1.steps": 50}), 1, step=4)
    check(tmp_path, with_controls(), "4")


def test_a_control_that_is_done_is_left_as_it_is(tmp_path):
    longer = with_controls(**{"stage_1.steps": 12})
    save_stage(tmp_path, longer, 1)
    save_stage(tmp_path, longer, 4)
    check(tmp_path, with_controls(), "4")


def test_tokens_count_rows_of_other_batches_and_adapters_are_those_of_the_record(tmp_path):
    save_stage(tmp_path, with_controls(batch_size=4), 1)
    with pytest.raises(UserError, match="12 steps match"):
        check(tmp_path, with_controls(), "4")
    save_stage(tmp_path / "full", with_controls(), 1)
    check(tmp_path / "full", with_controls(), "5")
    model, _ = source.prepare(tmp_path / "full", with_controls())
    adapted = with_controls(**{"lora.rank": 2})
    own = resolve.find(resolve.recipes(adapted, model), "5")
    record = resolve.find(resolve.recipes(with_controls(), model), "1")
    assert resolve.matched_steps(own, {1: record}) != own.stage.steps  # the test can tell
    with pytest.raises(UserError, match="to match the FLOPs of stage 1"):
        check(tmp_path / "full", adapted, "5")


def test_the_teacher_of_a_matched_student_is_that_of_its_record(tmp_path):
    """A teacher of longer thoughts costs more to ask, also if no row of the config is it any more."""
    row_of_student = {"same_flops_as": (3,), "start": 0, "control": True}
    config = with_controls()
    config.stage_6 = row("of-a-student", "next_token", **row_of_student)
    for number in (2, 3):
        save_stage(tmp_path, with_controls(**{"stage_2.n_ahead": 12}), number)
    with pytest.raises(UserError, match="to match the FLOPs of stage 3"):
        check(tmp_path, config, "6")
    shutil.rmtree(folders.stage_folder(tmp_path, 2))
    check(tmp_path, config, "6")


def test_a_limit_of_steps_holds_for_all(tmp_path):
    save_stage(tmp_path, with_controls(**{"stage_1.steps": 12}), 1)
    check(tmp_path, with_controls(), "4", max_steps=3)


def test_launch_refuses_it_before_anything_is_trained(tmp_path):
    flags = ("--config=tiny", f"--workdir={tmp_path / 'W'}", "--config.data.num_documents=300")
    run("launch", *flags, "--stage=0", "--max_steps=2", "--config.batch_size=2")
    control = ("--stage=4", "--config.stage_4.same_steps_as=(0,)", "--config.batch_size=2")
    for dry in ((), ("--dry_run",)):
        line = refusal("launch", *flags, *control, *dry)
        assert "would take 1500 steps, to match the tokens of stage 0 (base)" in line
        assert "2 steps match" in line
    line = refusal("launch", *flags, *control, "--dry_run", "--config.seed=7")
    assert "was begun with seed=0, now it is 7; use another --workdir" in line
