"""Controls that match stages which were trained with settings of their own."""

import pytest

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.stage import row, select
from fqs_jax.runs import folders, matched, source
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, save_stage

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
    matched.check(root, config, recipes, chosen, max_steps)


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
    save_stage(tmp_path, config, 1, step=steps - 1)
    check(tmp_path, config, "1,4")
    save_stage(tmp_path / "longer", with_controls(**{"stage_1.steps": steps + 5}), 1)
    with pytest.raises(UserError, match="to match the tokens of stage 1"):
        check(tmp_path / "longer", config, "1,4")


def test_a_limit_of_steps_holds_for_all(tmp_path):
    save_stage(tmp_path, with_controls(**{"stage_1.steps": 3}), 1)
    check(tmp_path, with_controls(), "4", max_steps=3)
    assert folders.read_run(tmp_path, 1)[0].steps == 3
