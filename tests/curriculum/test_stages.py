"""Stages: the published rows, rows that depend on others, and what is refused."""

import importlib
import json
import math
import operator
from typing import Any

import ml_collections
import pytest

from configs import common, mistral_7b
from fqs_jax.curriculum import objective, resolve, settings
from fqs_jax.curriculum import stage as stage_lib
from fqs_jax.curriculum.stage import Stage, row
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.lora import Lora
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import flops
from tests.conftest import REPO
from tests.tiny_runs import clock_config

MODEL = ModelConfig(32, 16, 2, 2, 1, 8, 24)
# Of other rows than the published ones.
EXPERIMENTS = (
    "internalize",
    "noisy_labels",
    "shorten",
    "smollm2_recipe",
    "smollm2_word_problems",
    "think_on_text",
    "think_once",
    "tiny",
)
CONFIGS = sorted(p.stem for p in (REPO / "configs").glob("*.py") if p.stem != "__init__")
ASKED = ("data.clock.worked", "data.clock.direct", "data.clock.chatter")


def stages_of(changes: dict[str, Any], max_steps: int | None = None) -> list[Stage]:
    return stages_in(clock_config(changes), max_steps)


def stages_in(config: ml_collections.ConfigDict, max_steps: int | None = None) -> list[Stage]:
    return [recipe.stage for recipe in resolve.recipes(config, MODEL, max_steps)]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_consistent_rows(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    stages = stages_in(config)
    assert all(stage.steps > 0 for stage in stages)
    if name in EXPERIMENTS:
        return
    *thinking, last = [stage for stage in stages if not stage.control][-4:]
    assert all(objective.of(stage).thinks for stage in thinking) and objective.of(last).has_teacher
    lengths = [stage.n_ahead for stage in stages if objective.of(stage).thinks]
    assert lengths == sorted(lengths, reverse=True)


def test_published_rows():
    config = mistral_7b.get_config()
    recipes = resolve.recipes(config, MODEL)
    stages = [recipe.stage for recipe in recipes]
    rows = [
        *[(s.number, s.objective, s.start, s.teacher, s.n_ahead, s.n_ahead_talk) for s in stages],
        *[(s.learning_rate, s.steps, s.control) for s in stages],
    ]
    assert rows == [
        (1, "quiet_star", None, None, 16, 8),
        (2, "quiet_star", 1, None, 12, 4),
        (3, "quiet_star", 2, None, 8, 4),
        (4, "ntp", None, 2, 1, 1),
        (2e-6, 150, False),
        (1e-6, 150, False),
        (1e-6, 150, False),
        (1e-6, 300, False),
    ]
    assert [r.thought.num_tokens for r in recipes if r.thought] == [13, 9, 5]


PUBLISHED = {
    "batch_size": 8,
    "data.seq_len": 256,
    "data.rows": "crop",
    "checkpoint_every": 10,
    "compute.dtype": "bfloat16",
    "compute.param_dtype": "bfloat16",
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 1e-3,
    "optimizer.clip_norm": 1.0,
    "optimizer.warmup_steps": 20,
    "optimizer.decay_steps": 100_000,
    "optimizer.lr_scale.lm": 1.0,
    "optimizer.lr_scale.talk_head": 1.0,
    "optimizer.lr_scale.marks": 1.0,
    "thought.rationales": 2,
    "thought.mixing": "linear",
    "thought.embedding_scale": 100.0,
    "thought.temperature": 1.0,
    "thought.eval_temperature": 1.0,
    "thought.reinforce_temperature": 3.0,
    "thought.start_text": "---",
    "thought.end_text": "---",
    "thought.reset_marks_on_load": True,
    "thought.reset_talk_head_on_load": True,
    "thought.reset_marks_at_eval": True,
    "quiet_star.base_weight": 0.5,
    "quiet_star.mixed_scale": 1.0,
    "quiet_star.likelihood": "each",
    "quiet_star.policy_weight": 1e6,
    "quiet_star.advantage": "clipped",
    "quiet_star.reward": "mixed",
    "ntp.action": "sampled",
    "ntp.temperature": 3.0,
    "ntp.policy_weight": 1e6,
    "ntp.clip": True,
}


def test_published_settings():
    config = mistral_7b.get_config()
    read = {name: operator.attrgetter(name)(config) for name in PUBLISHED}
    assert read == PUBLISHED


def test_controls_run_as_long_as_the_stages_they_control():
    config = clock_config({"stage_1.steps": 7, "stage_2.steps": 4})
    plain = {"objective": "next_token", "start": 0, "control": True}
    config.stage_7 = row("steps", same_steps_as=(1, 2), **plain)
    config.stage_10 = row("flops", same_flops_as=(1, 2), **plain)
    recipes = resolve.recipes(config, MODEL)
    stages = [recipe.stage for recipe in recipes]
    assert [stage.number for stage in stages] == [0, 1, 2, 3, 7, 10]  # by number, not as text
    assert stages[4].steps == 11

    spent = sum(r.stage.steps * objective.step_flops(r) for r in recipes[1:3])
    own = objective.step_flops(recipes[5])
    assert abs(stages[5].steps * own - spent) <= own / 2 and stages[5].steps > 3 * 11
    capped = stages_in(config, max_steps=5)
    assert [stage.steps for stage in capped] == [5, 5, 4, 5, 5, 5]


def test_a_control_of_a_student_pays_for_asking_its_teacher_too():
    config = clock_config({"stage_3.steps": 5})
    config.stage_7 = row("flops", "next_token", same_flops_as=(3,))
    recipes = resolve.recipes(config, MODEL)
    *_, ntp, control = recipes
    step, own = (objective.step_flops(recipe) for recipe in (ntp, control))
    teacher = recipes[2]
    assert ntp.stage.teacher == teacher.stage.number and teacher.thought
    thought = objective.teacher_thought(ntp, teacher.thought)
    assert thought.num_tokens == teacher.stage.n_ahead - 3 and thought.rationales == 1
    spent = 5 * (step + flops.asking(MODEL, thought, 2, 16))
    assert control.stage.steps == round(spent / own) > 2 * 5
    assert 5 * (step + objective.teacher_flops(ntp, teacher.thought)) == spent
    assert objective.teacher_flops(teacher, None) == 0


def test_a_student_that_is_a_control_pays_for_its_own_teacher():
    """One that matches its own settings trains for as many steps."""
    config = clock_config({"stage_3.steps": 5})
    own = {field: config.stage_3[field] for field in ("start", "teacher", "learning_rate")}
    config.stage_7 = row("again", "ntp", same_flops_as=(3,), **own)
    *_, ntp, control = resolve.recipes(config, MODEL)
    assert control.stage.steps == ntp.stage.steps == 5
    assert objective.teacher_flops(control, resolve.recipes(config, MODEL)[2].thought) > 0


def test_step_flops_are_those_of_the_objective():
    config = clock_config()
    base, think, _, ntp = resolve.recipes(config, MODEL)
    assert objective.step_flops(base) == flops.next_token_step(MODEL, 2, 16)
    assert think.thought is not None
    assert objective.step_flops(think) == flops.quiet_star_step(MODEL, think.thought, 2, 16)
    assert objective.step_flops(ntp) == flops.next_token_step(MODEL, 2, 16)


def test_finding_the_likeliest_tokens_of_mixtures_costs_a_read_of_the_head():
    changes = {"thought.mixing": "probability", "quiet_star.advantage": "leave_one_out"}
    usual = resolve.recipes(clock_config(changes), MODEL)[1]
    judged = resolve.recipes(clock_config(changes | {"quiet_star.reward": "correct"}), MODEL)[1]
    reads = 2 * 16 * usual.thought.rationales * usual.thought.n_ahead_talk
    more = objective.step_flops(judged) - objective.step_flops(usual)
    assert more == reads * flops.vocabulary(MODEL)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stage_1.objective": "think"}, "stage_1.objective is 'think'; choose from next_token"),
        ({"stage_1.n_ahead": 3}, "stage_1: n_ahead must be at least 4"),
        ({"stage_1.n_ahead_talk": 0}, "stage_1: n_ahead must be at least 4.* and n_ahead_talk 1"),
        ({"stage_1.start": 1}, "stage_1 refers to stage 1, which is not a row before it"),
        ({"stage_1.start": 2}, "stage_1 refers to stage 2"),
        ({"stage_2.same_steps_as": (1, 9)}, "stage_2 refers to stage 9"),
        ({"stage_2.same_flops_as": (3,)}, "stage_2 refers to stage 3"),
        ({"stage_3.teacher": 4}, "stage_3 refers to stage 4"),
        ({"stage_3.teacher": 0}, "stage_3.teacher must be the number of a thinking stage"),
        ({"stage_1.objective": "ntp"}, "stage_1.teacher must be the number of a thinking stage"),
        ({"stage_2.steps": 0}, "stage_2.steps is 0; set at least 1"),
        (
            {"stage_2.same_steps_as": (1,)},
            r"stage_2 has steps and same_steps_as, .*: keep one, and set steps to 0 or the other to \(\)",
        ),
        (
            {"stage_2.steps": 0, "stage_2.same_steps_as": (1,), "stage_2.same_flops_as": (0,)},
            "stage_2 has same_steps_as and same_flops_as, and each says how long it trains",
        ),
        (
            {"data.learn": "answers", **dict.fromkeys(ASKED, 0.0), "data.clock.unanswered": 1.0},
            "data.learn=answers has nothing to learn in stage_0, whose documents are all unanswered",
        ),
        ({"stage_2.teacher": 1}, "stage_2 has a teacher; only ntp and distill are taught"),
        (
            {"stage_1.settings": ("data.clock.direct=-1",)},
            r"stage_1.settings: data.clock.direct is -1.0; set at least 0",
        ),
        ({"data.seq_len": 3}, "data.seq_len is 3; stage_1 needs at least n_ahead_talk . 2 = 4"),
        ({"thought.mixing": "half"}, "mixing 'half' is none of linear, sigmoid, probability"),
        ({"thought.rationales": 0}, "thought.rationales is 0; set at least 1"),
        ({"thought.masked_ids": (32,)}, "masked_ids go from 0 to 31"),
        ({"thought.masked_ids": (-1,)}, "masked_ids go from 0 to 31"),
        ({"quiet_star.advantage": "best"}, "advantage 'best' is none of clipped"),
        (
            {"quiet_star.reward": "correct", "thought.rationales": 1},
            "reward=correct compares the thoughts at a position, and there is one",
        ),
        ({"thought.temperature": 0.0}, "would all be the same at thought.temperature=0, with no"),
        ({"quiet_star.likelihood": "sum"}, "likelihood 'sum' is none of each, average"),
        ({"ntp.action": "all"}, "action 'all' is none of sampled, expected, label"),
        ({"lora.rank": -1}, "lora.rank is -1; set at least 0"),
        (
            {"lora.rank": 17},
            "lora.rank is 17, more than the smaller side .* 'k'; set at most 8, or",
        ),
        ({"lora.alpha": math.nan}, "lora.alpha is nan; set at least 1e-38"),
        ({"lora.targets": "q,w"}, "names 'w'; choose from q,k,v,o,gate,up,down"),
        ({"lora.rank": 2, "lora.targets": ""}, "lora.targets names ''; choose from q,k,v,o"),
        (
            {"stage_1.settings": ("lora.rank=-3",)},
            "stage_1.settings: lora.rank is -3; set at least 0",
        ),
        ({"batch_size": 0}, "batch_size is 0; set at least 1"),
        ({"seed": -1}, "seed is -1; set at least 0"),
        ({"log_every": 0}, "log_every is 0; set at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0; set at least 1"),
    ],
)
def test_inconsistent_rows_and_settings(changes, message):
    with pytest.raises(UserError, match=message) as refused:
        stages_of(changes)
    assert "\n" not in str(refused.value)


def test_settings_of_a_row_are_its_own():
    own = ("quiet_star.policy_weight=3", "quiet_star.advantage=clipped", "data.clock.lengths=(3,)")
    own = (*own, "data.seq_len=9")
    config = clock_config({"stage_1.settings": own, "quiet_star.advantage": "leave_one_out"})
    base, think, again, _ = resolve.recipes(config, MODEL)
    weights = think.objective
    assert (weights.policy_weight, weights.advantage) == (3.0, "clipped")
    assert again.objective.advantage == "leave_one_out"
    assert tuple(think.data.clock.lengths) == (3,)
    assert (base.seq_len, think.seq_len, again.seq_len) == (16, 9, 16)
    assert base.data == config.data


def test_adapters_are_a_setting_of_each_row():
    changes = {"lora.rank": 4, "lora.targets": "down, q", "stage_1.settings": ("lora.rank=0",)}
    changes["stage_2.settings"] = ("lora.rank=2", "lora.alpha=3", "lora.targets=v")
    found = [recipe.lora for recipe in resolve.recipes(clock_config(changes), MODEL)]
    usual = Lora(4, 16.0, ("q", "down"))
    assert found == [usual, None, Lora(2, 3.0, ("v",)), usual]
    assert usual.scale == 4


def test_a_config_without_the_section_has_no_adapters():
    config = clock_config({})
    del config["lora"]
    assert all(recipe.lora is None for recipe in resolve.recipes(config, MODEL))
    config.stage_1.settings = ("lora.rank=2",)
    with pytest.raises(
        UserError, match="stage_1.settings are of the section lora, which the config"
    ):
        resolve.recipes(config, MODEL)
    config.stage_1.settings = ()
    config.lora = ml_collections.ConfigDict({"rank": 2, "alpha": 1.0, "targets": ("q", "v")})
    with pytest.raises(UserError, match="lora needs rank, alpha and targets, such as q,v"):
        resolve.recipes(config, MODEL)


@pytest.mark.parametrize(
    "setting",
    [
        "ntp.action",
        "ntp.actoin=label",
        "action=label",
        "thought.mixing=linear",
        "ntp.clip=perhaps",
        "ntp.clip=1",
        "ntp.temperature='hot'",
        "data.rows=packed",
        "data.clock=1",
        "data.clock.modulus=5",
        "data.chain.direct=1.0",
        "data.text=FILE",
    ],
)
def test_settings_that_a_row_cannot_have(setting):
    with pytest.raises(UserError, match="stage_1.settings has .*; write field=value"):
        stages_of({"stage_1.settings": (setting,)})


def test_rows_of_another_stage():
    *_, ntp = stages_of({"stage_3.rows_of": 1})
    assert ntp.stream == 1 and stages_of({})[-1].stream == 3
    with pytest.raises(UserError, match="stage_1 refers to stage 2"):
        stages_of({"stage_1.rows_of": 2})
    with pytest.raises(UserError, match="stage_3.rows_of is 1, whose training rows differ"):
        stages_of({"stage_3.rows_of": 1, "stage_1.settings": ("data.clock.direct=0.5",)})
    with pytest.raises(UserError, match="stage_3.rows_of is 2, whose training rows differ"):
        stages_of({"stage_3.rows_of": 2, "stage_2.rows_of": 1})


def test_settings_are_read_back_from_a_record():
    own = ("data.clock.lengths=(2,)", "distill.form=hinge", "ntp.clip=False")
    config = clock_config({"stage_3.settings": own})
    config = ml_collections.ConfigDict(json.loads(json.dumps(config.to_dict())))
    del config.distill  # a record leaves out what other objectives are set to
    ntp = resolve.recipe(config, stage_lib.rows(config)[3], MODEL)
    assert not ntp.objective.clip
    assert tuple(ntp.data.clock.lengths) == (2,)


def test_no_rows():
    config = clock_config()
    for number in range(4):
        del config[f"stage_{number}"]
    with pytest.raises(UserError, match="no stage_N rows"):
        stages_in(config)


def test_find():
    stages = stages_of({})
    assert stage_lib.find(stages, "2") is stage_lib.find(stages, "think-4-1") is stages[2]
    assert str(stages[2]) == "stage 2 (think-4-1)"
    for which in ("4", "", "all", "think"):
        with pytest.raises(
            UserError, match=f"no stage '{which}'; there are 0 .base., 1 .think-5-2"
        ):
            stage_lib.find(stages, which)
    with pytest.raises(UserError, match="no stage '0'; there are none yet"):
        stage_lib.find([], "0")


def test_rows_know_every_field_and_no_other():
    config = common.get_config()
    config.stage_4.start = 3  # was None: a placeholder of its type
    config.stage_4.teacher = 3
    assert stages_in(config)[3].start == 3
    with pytest.raises(TypeError):
        config.stage_4.start = "three"
    with pytest.raises(AttributeError):
        config.lock().stage_4.strat = 3


def test_thought_config_follows_the_row_and_the_config():
    config = clock_config({"thought.masked_ids": (3, 5), "thought.mixing": "sigmoid"})
    recipe = resolve.recipes(config, MODEL)[1]
    thought = recipe.thought
    assert thought is not None
    assert (thought.n_ahead, thought.n_ahead_talk, thought.rationales) == (5, 2, 2)
    assert (thought.mixing, thought.masked_ids) == ("sigmoid", (3, 5))
    assert settings.thought_config(config, recipe.stage, rationales=1).rationales == 1


def test_several_stages_in_the_order_of_the_config():
    stages = stages_of({})
    for which, numbers in (
        ("all", [0, 1, 2, 3]),
        ("2,0,think-5-2", [0, 1, 2]),
        ("ntp, 3", [3]),
        ("1", [1]),
        ("..1", [0, 1]),
        ("..ntp", [0, 1, 2, 3]),
    ):
        assert [stage.number for stage in stage_lib.select(stages, which)] == numbers
    for which, missing in (
        ("0,7", "7"),
        ("", ""),
        ("0,", ""),
        ("0,all", "all"),
        ("..7", "7"),
        ("..", ""),
    ):
        with pytest.raises(UserError, match=f"no stage '{missing}'; there are 0 .base."):
            stage_lib.select(stages, which)
