"""The loss of a stage on held-out text while it trains, always on the same rows with the same thoughts.

It is a function of the parameters alone: the randomness of a batch is that of the stage and the number of
the batch, whatever the step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.curriculum import held_out, objective
from fqs_jax.curriculum.recipe import HeldOut, Recipe
from fqs_jax.data import corpus
from fqs_jax.model import lora
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.runs import folders
from fqs_jax.runtime import processes, sharding
from fqs_jax.training import step as step_lib
from fqs_jax.training.start import Run
from fqs_jax.training.step import Program

# Folded into the stage's key instead of a step number (training/start.py has the others).
_KEY = 2**32 - 3


class Measure(NamedTuple):
    """A compiled measurement.

    Attributes:
      settings: when it is made.
      text: the beginning of the hash of its rows; numbers of other rows are not comparable.
      compiled: (parameters, frozen, batch, its number) -> losses, summed up to the mean over all rows.
      batches: in their place on the mesh, with their numbers.
    """

    settings: HeldOut
    text: str
    compiled: Any
    batches: tuple[tuple[dict[str, jax.Array], jax.Array], ...]

    def is_due(self, step: int, last: int) -> bool:
        """True after every `settings.every` steps, and after the last one."""
        return step % self.settings.every == 0 or step == last

    def losses(self, params: Params, frozen: Params) -> dict[str, float]:
        """The losses of parameters, nats a token: means over the targets of all rows."""
        found = jax.device_get(
            [
                processes.settled(self.compiled(params, frozen, batch, number))
                for batch, number in self.batches
            ]
        )
        return {
            name: math.fsum(float(losses[name]) for losses in found) / len(found)
            for name in found[0]
        }


def measure(run: Run, recipe: Recipe, program: Program) -> Measure | None:
    """The measurement of a stage, compiled and with its rows read; None if it is off.

    Raises:
      UserError: the held-out text cannot be read.
    """
    settings = recipe.held_out
    if not settings.every:
        return None
    mesh, small = run.mesh, held_out.evaluated(recipe)
    source = folders.local_source(run.root)
    data = corpus.held_out(
        recipe.data,
        settings.text,
        settings.rows,
        run.tokenizer,
        small.batch_size,
        recipe.seed,
        source,
    )
    given_by_teacher = objective.teacher_arrays(recipe)
    shapes = step_lib.abstract_batch(small, mesh, corpus.extra_keys(recipe.data))
    shapes = {name: leaf for name, leaf in shapes.items() if name not in given_by_teacher}
    rows = sharding.local_rows(shapes["tokens"])
    parts = -(-min(settings.rows, data.epoch_size) // small.batch_size)
    placed = [
        {name: sharding.from_local_rows(batch[name], rows, leaf) for name, leaf in shapes.items()}
        for batch in (data.batch(number, rows) for number in range(parts))
    ]
    # As in a step of several microbatches: each divides by its part of the targets of all rows.
    count = jax.jit(
        lambda batch: batch_lib.target_counts(batch_lib.talk_targets(batch, recipe.talk_steps)),
        out_shardings=sharding.replicated(mesh),
    )
    counts = sum(jax.device_get(processes.settled(count(batch))) for batch in placed) / parts
    shared = {"counts": sharding.replicate(np.asarray(counts, np.float32), mesh)}
    numbers = [sharding.replicate(np.asarray(number, np.uint32), mesh) for number in range(parts)]
    batches = tuple((batch | shared, number) for batch, number in zip(placed, numbers, strict=True))
    split, _ = step_lib.split_rows(small, mesh)
    loss_function = held_out.loss_function(small, split)
    scale = recipe.lora.scale if recipe.lora else 1.0
    key = jax.random.fold_in(step_lib.stage_key(recipe), jnp.uint32(_KEY))

    def losses(params: Params, frozen: Params, batch: Any, number: jax.Array) -> Any:
        joined = lora.joined(params, frozen, scale)
        _, found = loss_function(joined, batch, jax.random.fold_in(key, number))
        return metrics_lib.values(found)

    jitted = jax.jit(losses, out_shardings=sharding.replicated(mesh))
    compiled = jitted.lower(program.state.params, program.frozen, *batches[0]).compile()
    return Measure(settings, data.digest()[:16], compiled, batches)
