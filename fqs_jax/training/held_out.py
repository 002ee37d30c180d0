"""The loss of a stage on held-out text while it trains, always on the same rows with the same thoughts.

It is a function of the parameters alone: the randomness of a row is that of the stage and the row's number,
whatever the step, and however the rows are divided into batches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fqs_jax.curriculum import held_out, objective
from fqs_jax.curriculum.recipe import HeldOut, Recipe
from fqs_jax.data import corpus
from fqs_jax.data.rows import windows
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
      text: identifies its rows; the losses of other rows are not comparable.
      compiled: (parameters, frozen, batch) -> losses, whose mean over the batches is that over all rows.
      batches: in their place on the mesh.
    """

    settings: HeldOut
    text: str
    compiled: Any
    batches: tuple[dict[str, jax.Array], ...]

    def is_due(self, step: int, last: int) -> bool:
        """True after every `settings.every` steps, and after the last one."""
        return step % self.settings.every == 0 or step == last

    def losses(self, params: Params, frozen: Params) -> dict[str, float]:
        """The losses of parameters, nats a token: means over the targets of all rows."""
        found = jax.device_get(
            [processes.settled(self.compiled(params, frozen, batch)) for batch in self.batches]
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
    # As many whole batches of training, so that the rows do not depend on microbatches.
    parts = -(-min(settings.rows, data.epoch_size) // recipe.batch_size) * recipe.microbatches
    batches = _batches(
        recipe, small, mesh, [functools.partial(data.batch, n) for n in range(parts)]
    )
    split, _ = step_lib.split_rows(small, mesh)
    loss_function = held_out.loss_function(small, split)
    scale = recipe.lora.scale if recipe.lora else 1.0
    key = jax.random.fold_in(step_lib.stage_key(recipe), jnp.uint32(_KEY))

    def losses(params: Params, frozen: Params, batch: Any) -> Any:
        _, found = loss_function(lora.joined(params, frozen, scale), batch, key)
        return metrics_lib.values(found)

    jitted = jax.jit(losses, out_shardings=sharding.replicated(mesh))
    compiled = jitted.lower(program.state.params, program.frozen, batches[0]).compile()
    text = f"{data.digest()[:16]}-{parts * small.batch_size}"
    return Measure(settings, text, compiled, batches)


def _batches(
    recipe: Recipe,
    small: Recipe,
    mesh: Mesh,
    readers: Sequence[Callable[[np.ndarray], windows.Batch]],
) -> tuple[dict[str, jax.Array], ...]:
    """Batches of rows in their place, each with its part of the number of all targets.

    Args:
      small: the recipe of these batches; see `held_out.evaluated`.
      readers: from the numbers of rows in a batch to these rows.
    """
    given_by_teacher = objective.teacher_arrays(recipe)
    shapes = step_lib.abstract_batch(small, mesh, corpus.extra_keys(recipe.data))
    shapes = {name: leaf for name, leaf in shapes.items() if name not in given_by_teacher}
    B, talk_steps = small.batch_size, recipe.talk_steps
    row_B = jax.ShapeDtypeStruct((B,), np.int32, sharding=sharding.rows((B,), mesh))
    rows = sharding.local_rows(shapes["tokens"])

    def place(number: int, batch: windows.Batch) -> dict[str, jax.Array]:
        arrays = {name: (batch[name], leaf) for name, leaf in shapes.items()}
        arrays["row"] = (np.asarray(number * B + rows, np.int32), row_B)
        return {
            name: sharding.from_local_rows(local, rows, leaf)
            for name, (local, leaf) in arrays.items()
        }

    placed = [place(number, read(rows)) for number, read in enumerate(readers)]
    count = jax.jit(
        lambda batch: batch_lib.target_counts(batch_lib.talk_targets(batch, talk_steps)),
        out_shardings=sharding.replicated(mesh),
    )
    counts_A = sum(jax.device_get(processes.settled(count(batch))) for batch in placed)
    shared = sharding.replicate(np.asarray(counts_A / len(placed), np.float32), mesh)
    return tuple(batch | {"counts": shared} for batch in placed)
