"""The cost of training a model, with everything that it is made from."""

from __future__ import annotations

import ml_collections

from fqs_jax.curriculum import objective, resolve, settings
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import folders
from fqs_jax.runs import source as source_lib
from fqs_jax.sweeps.cells import Cell

# Of a checkpoint, whose cost is not known.
NOTHING = {"tokens": 0, "flops": 0, "after_base_flops": 0}


def training_cost(cell: Cell, number: int) -> dict[str, int]:
    """Tokens and FLOPs of training a stage and every stage that it is made from, each once.

    These are its start and its teacher, and theirs in turn. The FLOPs of the teachers' scores are
    included; the training of a checkpoint is not, since it is not known. Tokens are positions of rows,
    padding included. `after_base_flops` leaves out plain first stages that are no controls.
    """
    source = folders.local_source(cell.folder)
    runs: dict[int | None, tuple[Stage, ml_collections.ConfigDict]] = {}
    unread = [number]
    while unread:
        number = unread.pop()
        if number not in runs:
            stage, _ = runs[number] = folders.read_run(cell.folder, number)
            teacher_number = stage.teacher if objective.of(stage).has_teacher else None
            unread += [n for n in (stage.start, teacher_number) if n is not None]
    cost = dict(NOTHING)
    for stage, config in runs.values():
        model = source_lib.read_model(source, config)
        recipe = resolve.recipe(config, stage, model)
        thought = None
        if stage.teacher in runs:
            teacher, teacher_config = runs[stage.teacher]
            thought = settings.thought_config(teacher_config, teacher)
        per_step = objective.step_flops(recipe) + objective.teacher_flops(recipe, thought)
        first = stage.start is None and not stage.control
        is_base = first and stage.objective == "next_token"
        cost["tokens"] += stage.steps * recipe.batch_size * recipe.seq_len
        cost["flops"] += stage.steps * per_step
        cost["after_base_flops"] += (not is_base) * stage.steps * per_step
    return cost
