"""Ranges of the numbers of a config: every field that has one refuses what is out of it."""

import math

import ml_collections
import numpy as np
import pytest

from configs import common
from fqs_jax.curriculum import numbers, resolve
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.runtime.errors import UserError
from tests.curriculum.test_stages import MODEL
from tests.tiny_runs import clock_config


def changed(name, value):
    """The published config with a field of any type."""
    fields = common.get_config().to_dict()
    *sections, last = name.split(".")
    place = fields
    for section in sections:
        place = place[section]
    assert last in place
    place[last] = value
    return ml_collections.ConfigDict(fields)


NAMES = [
    *(name for name in numbers.RANGES if "*" not in name and not name.startswith("model.")),
    *("optimizer.lr_scale.marks", "data.clock.worked", "data.chain.test_share", "mesh.fsdp"),
    *("data.parity.label_noise", "stage_1.learning_rate", "stage_2.steps", "stage_3.n_ahead"),
]

WHOLE = [name for name in NAMES if (bounds := numbers._range(name)) and bounds.whole]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -1e300, "8", None, True, (1,), np.float32("nan")],
    ids=str,
)
def test_no_field_takes_nonsense(name, value):
    with pytest.raises(UserError) as refused:
        numbers.check(changed(name, value))
    message = str(refused.value)
    assert message.startswith(f"{name} is ") and "; set " in message and "\n" not in message


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
    numbers.check(changed(name, 20))
    numbers.check(changed(name, np.int64(20)))
    with pytest.raises(UserError, match=f"{name} is 2.0; set a whole number"):
        numbers.check(changed(name, 2.0))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.beta1", 1.0, "optimizer.beta1 is 1.0; set at least 0, below 1"),
        ("optimizer.eps", 0.0, "optimizer.eps is 0.0; set at least 1e-38"),
        ("optimizer.clip_norm", 1e300, "optimizer.clip_norm is 1e.300; set .*at most 3e.38"),
        ("optimizer.weight_decay", -0.1, "optimizer.weight_decay is -0.1; set at least 0"),
        ("thought.temperature", 1e-30, "thought.temperature is 1e-30; set 0, or at least 1e-06"),
        ("thought.reinforce_temperature", 0, "reinforce_temperature is 0; set at least 1e-06"),
        ("thought.position_fraction", 0.0, "position_fraction is 0.0; set above 0, at most 1"),
        ("quiet_star.base_weight", 1.5, "quiet_star.base_weight is 1.5; set 0 to 1"),
        ("quiet_star.mixed_scale", -1.0, "quiet_star.mixed_scale is -1.0; set at least 0"),
        ("checkpoint_minutes", math.nan, "checkpoint_minutes is nan; set at least 0"),
        ("batch_size", 2**31, "batch_size is 2147483648; set at least 1, at most 2147483647"),
        ("seed", -1, "seed is -1; set at least 0"),
    ],
)
def test_ranges_in_words(name, value, message):
    with pytest.raises(UserError, match=message):
        numbers.check(changed(name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 10**20),
        ("thought.temperature", 0),
        ("optimizer.beta1", 0.0),
        ("optimizer.clip_norm", 1),
        ("checkpoint_minutes", 0.5),
        ("thought.mixing_bias", -2.0),
        ("quiet_star.policy_weight", 1e6),
        ("stage_1.learning_rate", 0.0),
    ],
)
def test_what_is_allowed(name, value):
    numbers.check_complete(changed(name, value))


def test_a_missing_field_is_named():
    config = common.get_config()
    with config.unlocked():
        del config.optimizer.beta2
    with pytest.raises(UserError, match=r"optimizer.beta2 is missing; see configs/common.py"):
        numbers.check_complete(config)


def test_overrides_of_a_row_are_checked_too():
    config = clock_config({"stage_1.settings": ("quiet_star.policy_weight=1e999",)})
    with pytest.raises(UserError) as refused:
        resolve.recipes(config, MODEL)
    assert str(refused.value).startswith("stage_1.settings: quiet_star.policy_weight is inf; set ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": "0"}, "stage_1.start is '0'; it should be the number of a stage"),
        ({"steps": 1.5}, "stage_1.steps is 1.5; it should be a whole number"),
        ({"steps": True}, "stage_1.steps is True; it should be a whole number"),
        ({"name": 3}, "stage_1.name is 3; it should be a text"),
        ({"control": 1}, "stage_1.control is 1; it should be True or False"),
        ({"same_steps_as": ("a",)}, r"stage_1.same_steps_as is \('a',\); it should be numbers of"),
        ({"settings": "a=b"}, "stage_1.settings is 'a=b'; it should be texts, such as"),
        ({"strat": 1}, "stage_1 has a field 'strat', which is none of number, name, objective"),
        ({"learning_rate": "1e-3"}, "stage_1.learning_rate is '1e-3'; it should be a number"),
    ],
)
def test_rows_of_other_types(fields, message):
    config = ml_collections.ConfigDict(
        {"stage_1": {"name": "a", "objective": "next_token"} | fields}
    )
    with pytest.raises(UserError, match=message):
        stage_lib.rows(config)


def test_a_row_without_a_name():
    config = ml_collections.ConfigDict({"stage_1": {"objective": "next_token"}})
    with pytest.raises(UserError, match="stage_1 has no field 'name'"):
        stage_lib.rows(config)
