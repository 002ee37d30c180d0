"""The table of objectives: one row for each way to train a stage.

A row holds everything that the rest of the program must know of an objective. A new objective is a loss
function and a row; docs/adding-an-objective.md walks through one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.curriculum.stage import Stage
from fqs_jax.model import decoder
from fqs_jax.model import lora as lora_lib
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.model.lora import Lora
from fqs_jax.objectives import distillation, plain, quiet_star
from fqs_jax.objectives.distillation import Arrays, DistillConfig
from fqs_jax.objectives.metrics import Metrics
from fqs_jax.objectives.plain import NTPConfig
from fqs_jax.objectives.thought_losses import QuietStarConfig
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import flops, parameters
from fqs_jax.thinking.config import Thinker, ThoughtConfig

# (params, batch, key) -> (loss, metrics)
Loss = Callable[..., tuple[Any, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """One way to train a stage.

    Attributes:
      loss: (recipe, split_rationales) -> loss function; `split_rationales` is that of
        `thoughts.read_and_think`, for objectives that think.
      step_flops: model FLOPs of one training step (thinking/flops.py).
      settings: (config, own section) -> the objective's own settings, `Recipe.objective`. The section is
        that of the objective's name, with the stage's overrides; None = the objective has no section.
      kind: group of the trained model in tables and pictures: `base`, `thinking` or `student`.
      thinks: the stage has thoughts, with parameters of their own.
      teacher_thoughts: own settings -> thoughts that a teacher's prediction is averaged over; None = the
        objective has no teacher.
      teacher_positions: own settings -> positions at which the teacher thinks, `all` or the `last`.
      teacher_arrays: shape of one row and dtype of each array that batches get from the teacher.
      check: raises UserError if the recipe cannot be trained. `loss` is built as a check too.
      in_other_records: the section is part of other stages' records (run.json). If not, stages that
        do not use it can be shared by several settings of it.
    """

    loss: Callable[[Recipe, bool], Loss]
    step_flops: Callable[[Recipe], int]
    settings: Callable[[ml_collections.ConfigDict, dict[str, Any]], Any] | None = None
    kind: str = "base"
    thinks: bool = False
    teacher_thoughts: Callable[[Any], int] | None = None
    teacher_positions: Callable[[Any], str] = lambda settings: "all"
    teacher_arrays: Callable[[Recipe], Arrays] = lambda recipe: {}
    check: Callable[[Recipe], None] = lambda recipe: None
    in_other_records: bool = False

    @property
    def has_teacher(self) -> bool:
        return self.teacher_thoughts is not None


def _next_token_loss(recipe: Recipe, split_rationales: bool) -> Loss:
    del split_rationales
    return functools.partial(plain.next_token_loss, model=recipe.model)


def _next_token_flops(recipe: Recipe) -> int:
    return flops.next_token_step(recipe.model, recipe.batch_size, recipe.seq_len, recipe.lora)


def _quiet_star_settings(
    config: ml_collections.ConfigDict, section: dict[str, Any]
) -> QuietStarConfig:
    chosen = {name: config.thought[name] for name in ("position_fraction", "positions")}
    return QuietStarConfig(**section, **chosen)


def _quiet_star_loss(recipe: Recipe, split_rationales: bool) -> Loss:
    assert recipe.thought is not None
    return functools.partial(
        quiet_star.quiet_star_loss,
        thinker=Thinker(recipe.model, recipe.thought),
        config=recipe.objective,
        split_rationales=split_rationales,
    )


def _quiet_star_flops(recipe: Recipe) -> int:
    weights: QuietStarConfig = recipe.objective
    assert recipe.thought is not None
    return flops.quiet_star_step(
        recipe.model,
        recipe.thought,
        recipe.batch_size,
        recipe.seq_len,
        weights.num_positions(recipe.seq_len),
        choosing=weights.position_fraction < 1 and weights.positions == "high_entropy",
        thought_only=weights.reads_thought_only,
        correct=weights.reads_correct,
        lora=recipe.lora,
    )


def _check_quiet_star(recipe: Recipe) -> None:
    thought = recipe.thought
    assert thought is not None
    if recipe.seq_len < thought.n_ahead_talk + 2:
        raise UserError(
            f"data.seq_len is {recipe.seq_len}; stage_{recipe.stage.number} needs at least "
            f"n_ahead_talk + 2 = {thought.n_ahead_talk + 2}, or no position has a reward"
        )
    if thought.tokens != "sampled" and recipe.objective.policy_weight:
        raise UserError(
            f"thought.tokens is {thought.tokens}: no token is drawn from the model, so REINFORCE has "
            "nothing to improve; set quiet_star.policy_weight to 0"
        )
    if (
        thought.rationales == 1
        and recipe.objective.reads_correct
        and recipe.objective.policy_weight
    ):
        raise UserError(
            "quiet_star.reward=correct compares the thoughts at a position, and there is one: set "
            "thought.rationales to 2 or more"
        )
    if thought.rationales > 1 and not thought.temperature and recipe.objective.policy_weight:
        raise UserError(
            f"the {thought.rationales} thoughts at a position would all be the same at "
            "thought.temperature=0, with no advantage to learn from: set it above 0"
        )
    if thought.tokens == "latent" and thought.rationales > 1:
        raise UserError(
            f"the {thought.rationales} latent thoughts at a position would all be the same: "
            "set thought.rationales to 1"
        )


def _student(loss: Loss) -> Callable[[Recipe, bool], Loss]:
    """The entry `Objective.loss` of a student, which predicts without thoughts."""
    return lambda recipe, split_rationales: functools.partial(
        loss, model=recipe.model, config=recipe.objective
    )


def _distill_flops(recipe: Recipe) -> int:
    reads = 1 if recipe.objective.positions == "last" else recipe.seq_len
    return flops.next_token_step(
        recipe.model, recipe.batch_size, recipe.seq_len, recipe.lora, reads
    )


def _distill_arrays(recipe: Recipe) -> Arrays:
    return distillation.teacher_arrays(recipe.objective, recipe.seq_len, recipe.model.vocab_size)


def _check_questions(recipe: Recipe) -> None:
    """Refuse text whose rows do not end in an unanswered question."""
    data = recipe.data
    needed: dict[str, Any] = {"rows": "crop", "learn": "all", "messages_key": ""}
    if data.source != "text":
        needed |= {f"{data.source}.{name}": 0.0 for name in ("worked", "direct", "chatter")}
    for name, value in needed.items():
        section, field = (data[data.source], name.split(".")[1]) if "." in name else (data, name)
        if (found := section.get(field, value)) != value:
            raise UserError(
                f"distill.positions is 'last', for questions without answers, one in a row, and data.{name} "
                f"is {found!r}: set it to {value!r}, or distill.positions to all"
            )


def _check_distill(recipe: Recipe) -> None:
    if recipe.objective.positions == "last":
        _check_questions(recipe)
    num_rows = recipe.stage.steps * recipe.batch_size
    distillation.check_size(_distill_arrays(recipe), num_rows, str(recipe.stage))


OBJECTIVES: dict[str, Objective] = {
    "next_token": Objective(loss=_next_token_loss, step_flops=_next_token_flops),
    "quiet_star": Objective(
        loss=_quiet_star_loss,
        step_flops=_quiet_star_flops,
        settings=_quiet_star_settings,
        kind="thinking",
        thinks=True,
        check=_check_quiet_star,
        in_other_records=True,
    ),
    "ntp": Objective(
        loss=_student(plain.ntp_loss),
        step_flops=_next_token_flops,
        settings=lambda config, section: NTPConfig(**section),
        kind="student",
        teacher_thoughts=lambda settings: 1,
        teacher_arrays=lambda recipe: {"teacher_log_prob": ((recipe.seq_len - 1,), np.float32)},
        in_other_records=True,
    ),
    "distill": Objective(
        loss=_student(distillation.distill_loss),
        step_flops=_distill_flops,
        settings=lambda config, section: DistillConfig(**section),
        kind="student",
        teacher_thoughts=lambda settings: settings.teacher_thoughts,
        teacher_positions=lambda settings: settings.positions,
        teacher_arrays=_distill_arrays,
        check=_check_distill,
    ),
}


def of(stage: Stage) -> Objective:
    """The objective of a stage.

    Raises:
      UserError: the table has no row of that name.
    """
    if stage.objective not in OBJECTIVES:
        raise UserError(
            f"stage_{stage.number}.objective is {stage.objective!r}; choose from "
            f"{', '.join(OBJECTIVES)}"
        )
    return OBJECTIVES[stage.objective]


def loss_function(recipe: Recipe, split_rationales: bool = False) -> Loss:
    """The loss of a stage as (params, batch, key) -> (loss, metrics)."""
    return of(recipe.stage).loss(recipe, split_rationales)


def step_flops(recipe: Recipe) -> int:
    """Model FLOPs of one training step of a stage."""
    return of(recipe.stage).step_flops(recipe)


def teacher_arrays(recipe: Recipe) -> Arrays:
    """Shape of one row and dtype of each array that batches get from the teacher, if there is one."""
    return of(recipe.stage).teacher_arrays(recipe)


def teacher_thought(recipe: Recipe, teacher: ThoughtConfig) -> ThoughtConfig:
    """The thoughts with which a teacher scores the rows of a stage.

    One is enough at a position where all would be the same: latent ones, pauses, and greedy ones.

    Args:
      teacher: the thoughts that the teacher was trained with.
    """
    thoughts = of(recipe.stage).teacher_thoughts
    assert thoughts is not None  # checked when the rows were read
    greedy = teacher.tokens == "sampled" and recipe.eval_temperature == 0
    all_same = greedy or teacher.tokens in ("latent", "pause")
    return dataclasses.replace(
        teacher,
        rationales=1 if all_same else thoughts(recipe.objective),
        n_ahead_talk=1,
        temperature=recipe.eval_temperature,
    )


def teacher_positions(recipe: Recipe) -> str:
    """The positions of a row at which a stage's teacher thinks: `all` of them, or the `last`."""
    return of(recipe.stage).teacher_positions(recipe.objective)


def teacher_flops(recipe: Recipe, teacher: ThoughtConfig | None) -> int:
    """Model FLOPs of a teacher's scores for the rows of one step; 0 for a stage without a teacher.

    Args:
      teacher: the thoughts that the teacher was trained with.
    """
    if not of(recipe.stage).has_teacher:
        return 0
    assert teacher is not None  # checked when the rows were read
    thought = teacher_thought(recipe, teacher)
    positions = None if teacher_positions(recipe) == "all" else 1
    return flops.asking(recipe.model, thought, recipe.batch_size, recipe.seq_len, positions)


def abstract_params(
    model: ModelConfig, thought: ThoughtConfig | None, lora: Lora | None = None
) -> Params:
    """Shapes and dtypes of parameters: {lm, and thought unless that is None}, with adapters if any."""

    def make() -> Params:
        key = jax.random.key(0)
        params: Params = {"lm": decoder.init(model, key)}
        if thought is not None:
            params["thought"] = parameters.init(Thinker(model, thought), params["lm"], key, 0, 0)
        if lora is not None:
            adapters = lora_lib.fresh(lora, params["lm"]["layers"], key)
            params["lm"] = lora_lib.joined(adapters, params["lm"])
        return params

    return jax.eval_shape(make)
