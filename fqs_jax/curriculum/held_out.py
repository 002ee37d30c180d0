"""The loss on held-out text during training: its settings, and what is measured for each objective."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from fqs_jax.curriculum import objective
from fqs_jax.curriculum.objective import Loss
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.objectives import plain
from fqs_jax.objectives.metrics import Metrics

MEASURED = ("nll_base", "nll_mixed", "nll_with_minus_without")  # of which a stage has one or all


def loss_function(recipe: Recipe, split_rationales: bool = False) -> Loss:
    """The losses of a stage on any text, as (params, batch, key) -> (loss, metrics).

    Those of the plain prediction and, for a stage that thinks, of the mixed one; a student is measured
    without its teacher. All are means over the targets of the batch.
    """
    if objective.of(recipe.stage).thinks:
        whole = objective.loss_function(recipe, split_rationales)

        def losses(params: Any, batch: Any, key: jax.Array) -> tuple[Any, Metrics]:
            loss, metrics = whole(params, batch, key)
            return loss, {name: metrics[name] for name in MEASURED if name in metrics}

        return losses

    def plain_loss(params: Any, batch: Any, key: jax.Array) -> tuple[Any, Metrics]:
        return plain.next_token_loss(params, batch, key, recipe.model)

    return plain_loss


def evaluated(recipe: Recipe) -> Recipe:
    """The recipe of the batches that are measured: as many rows as go through the network at once."""
    rows = recipe.batch_size // recipe.microbatches
    return dataclasses.replace(recipe, batch_size=rows, microbatches=1)
