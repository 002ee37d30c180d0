"""Checks of stage rows and recipes, made before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections

from fqs_jax.curriculum import numbers, objective
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.curriculum.stage import Stage, rows
from fqs_jax.data import corpus
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime.errors import UserError


def check_config(config: ml_collections.ConfigDict, model: ModelConfig) -> None:
    """Check the numbers of a config.

    Raises:
      UserError: one is out of range or missing.
    """
    numbers.check_complete(config)
    adapted = [row for row in rows(config) if any(s.startswith("lora.") for s in row.settings)]
    if adapted and "lora" not in config:
        raise UserError(
            f"stage_{adapted[0].number}.settings are of the section lora, which the config lacks; add "
            "c.lora to its get_config(), as in configs/common.py"
        )
    ids = config.thought.masked_ids
    if not all(type(i) is int and 0 <= i < model.vocab_size for i in ids):
        raise UserError(
            f"thought.masked_ids go from 0 to {model.vocab_size - 1}, the vocabulary's last"
        )


def check_row(stage: Stage, earlier: Mapping[int, Recipe]) -> None:
    """Check a row and what it refers to.

    Args:
      earlier: recipes of the rows before it, by number.

    Raises:
      UserError: the row is inconsistent.
    """
    name = f"stage_{stage.number}"
    own = objective.of(stage)
    if own.thinks and (stage.n_ahead < 4 or stage.n_ahead_talk < 1):
        raise UserError(
            f"{name}: n_ahead must be at least 4 (one sampled token) and n_ahead_talk 1"
        )
    named = [n for n in (stage.start, stage.teacher, stage.rows_of) if n is not None]
    for number in (*named, *stage.same_steps_as, *stage.same_flops_as):
        if number not in earlier:
            raise UserError(f"{name} refers to stage {number}, which is not a row before it")
    lengths = ("steps", "same_steps_as", "same_flops_as")
    given = [field for field in lengths if getattr(stage, field)]
    if len(given) > 1:
        raise UserError(
            f"{name} has {' and '.join(given)}, and each says how long it trains: keep one, and set steps "
            "to 0 or the other to ()"
        )
    if own.has_teacher and (stage.teacher is None or earlier[stage.teacher].thought is None):
        raise UserError(f"{name}.teacher must be the number of a thinking stage before it")
    if stage.teacher is not None and not own.has_teacher:
        taught = [key for key, row in objective.OBJECTIVES.items() if row.has_teacher]
        raise UserError(f"{name} has a teacher; only {' and '.join(taught)} are taught")


def check_recipe(recipe: Recipe, earlier: Mapping[int, Recipe]) -> None:
    """Check that a stage can be trained, now and not hours later.

    Raises:
      UserError: it cannot.
    """
    _check_data(recipe, earlier)
    if recipe.lora is not None:
        recipe.lora.check_rank(decoder.abstract_params(recipe.model)["layers"])
    if recipe.held_out.every:
        corpus.check_held_out(recipe.data, recipe.held_out.text)
    objective.of(recipe.stage).check(recipe)
    objective.loss_function(recipe)


def _check_data(recipe: Recipe, earlier: Mapping[int, Recipe]) -> None:
    """Check the training rows of a stage."""
    stage, data = recipe.stage, recipe.data
    name = f"stage_{stage.number}"
    try:
        task = corpus.built_in_task(data, recipe.seed)
    except UserError as error:
        raise UserError(f"{name}.settings: {error}" if stage.settings else str(error)) from error
    answered = task is None or task.worked or task.direct or task.chatter
    if data.get("learn") == "answers" and not answered:
        raise UserError(
            f"data.learn=answers has nothing to learn in {name}, whose documents are all unanswered: set "
            f"data.learn to all, or data.{data.source}.direct above 0"
        )
    if stage.rows_of is None:
        return
    other = earlier[stage.rows_of]
    if other.stage.rows_of is not None or other.data != data:
        raise UserError(
            f"{name}.rows_of is {other.stage.number}, whose training rows differ from those of this "
            "stage's settings; name a stage with rows of its own and the same data settings"
        )
    if None not in (stage.teacher, other.stage.teacher) and stage.teacher != other.stage.teacher:
        raise UserError(f"{name} has another teacher than {other.stage}, whose rows_of it reads")
