"""Teacher scores of a stage's training rows, computed once and cached on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from optax.microbatching import AccumulationType, microbatch

from fqs_jax.curriculum import objective, settings
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.data.rows.order import Dataset
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model.decoder import Params
from fqs_jax.runs import folders, record, source, stages
from fqs_jax.runtime import agreement, buckets, files, inputs, locks, paths, seeds, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.progress import Progress
from fqs_jax.thinking.config import Thinker
from fqs_jax.training import teacher as teacher_lib
from fqs_jax.training.start import RESUME, Batches, Run

PIECE = 8  # batches in a file; a request to stop is checked after each


def score_rows(
    teacher: Loaded,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    identity: str,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """A teacher's scores of all training rows of a stage: steps * B records.

    The fields of a record are `objective.teacher_arrays`; `teacher_log_prob` alone is computed without
    the whole vocabulary, and last positions without the others. A batch is scored in the stage's
    microbatches; the scores do not depend on them.

    Args:
      teacher: with as many rationales as its prediction is averaged over.
      folder: of the pieces on disk; pieces of another `identity` are computed again. Of several
        processes the first one writes.
      progress: called with (batches done, batches in all) after each piece; may raise to stop.
    """
    agreement.on_main(lambda: _check_identity(folder, identity))
    key = seeds.key(recipe.seed)
    arrays = objective.teacher_arrays(recipe)
    params, mesh, steps = teacher.params, teacher.mesh, recipe.stage.steps
    assert teacher.thought is not None  # a teacher thinks
    thinker = Thinker(teacher.model, teacher.thought)
    shape = (dataset.batch_size, dataset.seq_len)
    leaf = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding.rows(shape, mesh))
    rows = sharding.local_rows(leaf)

    record = np.dtype([(name, dtype, shape) for name, (shape, dtype) in arrays.items()])
    score_part = teacher_lib.predictions
    if list(arrays) == ["teacher_log_prob"]:
        score_part = teacher_lib.label_log_probs
    elif objective.teacher_positions(recipe) == "last":
        score_part = teacher_lib.predictions_at_last

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def score(params: Params, batch: dict[str, jax.Array], step: jax.Array) -> dict[str, jax.Array]:
        step_key = jax.random.fold_in(key, step)

        in_microbatches = microbatch(
            lambda part: score_part(params, part, step_key, thinker, arrays),
            argnums=0,
            microbatch_size=dataset.batch_size // recipe.microbatches,
            accumulator=AccumulationType.CONCAT,
        )
        return in_microbatches(batch | {"row": jnp.arange(dataset.batch_size)})

    def score_batch(step: int) -> np.ndarray:
        batch = {
            name: sharding.from_local_rows(local, rows, leaf)
            for name, local in dataset.batch(step, rows).items()
        }
        records = np.empty(dataset.batch_size, record)
        with jax.set_mesh(mesh):
            for name, scores in score(params, batch, np.int32(step)).items():
                records[name] = scores
        return records

    scores = np.empty(steps * dataset.batch_size, record)
    for start in range(0, steps, PIECE):
        stop = min(start + PIECE, steps)
        path = folder / f"batches_{start:07d}_{stop:07d}.npy"
        piece = _read_piece(path, (stop - start) * dataset.batch_size, record)
        if agreement.anyone(piece is None):
            piece = np.concatenate([score_batch(step) for step in range(start, stop)])
            write = functools.partial(files.save_array, values=piece)
            agreement.on_main(functools.partial(_write_piece, path, write))
        assert piece is not None  # nobody lacked it
        scores[start * dataset.batch_size : stop * dataset.batch_size] = piece
        progress(stop, steps)
    return scores


def _write_piece(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a piece.

    Raises:
      UserError: the disk refuses.
    """
    try:
        files.replace(path, write)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room, and {RESUME}: the scores before it are kept"
        ) from error


def _read_piece(path: Path, size: int, record: np.dtype) -> np.ndarray | None:
    """The needed fields of a piece on disk; None if it does not exist, lacks one, or is damaged.

    Raises:
      UserError: a bucket does not answer.
    """
    try:
        if paths.is_bucket(path):
            piece = np.load(buckets.open_file(path), allow_pickle=False)
        else:  # a map: a damaged header may state any size
            piece = np.load(path, mmap_mode="r", allow_pickle=False)
    except UserError:
        raise
    except Exception:  # damaged files make Numpy raise almost any exception
        return None
    if not isinstance(piece, np.ndarray):  # an archive
        return None
    kept: Any = piece.dtype.fields or {}
    assert record.fields is not None
    if piece.shape != (size,) or any(
        kept.get(n, ())[:1] != f[:1] for n, f in record.fields.items()
    ):
        return None
    if "teacher_ids" in kept and "teacher_ids" not in record.fields:
        return None  # of the likeliest tokens in order, not of the vocabulary by id
    needed = np.empty(size, record)
    for name in record.fields:
        needed[name] = piece[name]
    return needed


def _check_identity(folder: Path, identity: str) -> None:
    """Delete the pieces of another teacher."""
    files.make_folder(folder)
    path = folder / "identity"
    if _identity(path) == identity:
        return
    for piece in files.entries(folder):
        if fnmatch.fnmatchcase(piece.name, "batches_*.npy"):
            files.remove(piece)
    files.write_text(path, identity)


def _identity(path: Path) -> str | None:
    """The teacher of the pieces; None if it is not known.

    Raises:
      UserError: a bucket does not answer, which is no reason to delete anything.
    """
    if paths.is_bucket(path):
        with contextlib.suppress(FileNotFoundError):
            return buckets.read(path).decode(errors="replace")
        return None
    with contextlib.suppress(UserError):  # what cannot be read is of another teacher
        return inputs.read_text(path)
    return None


def teacher_scores(run: Run, recipe: Recipe, data: Dataset) -> np.ndarray | None:
    """The teacher's scores of all rows of a stage, computed now or earlier; None without a teacher.

    Stages that read the same rows share the scores.
    """
    config, stage = run.config, recipe.stage
    if not objective.teacher_arrays(recipe):
        return None
    assert stage.teacher is not None  # checked when the row was read
    params, row = stages.load_stage(
        run.root, stage.teacher, run.command(stage.teacher), mesh=run.mesh
    )
    _, teacher_config = folders.read_run(run.root, stage.teacher)
    trained_thought = settings.thought_config(teacher_config, row)
    thought = objective.teacher_thought(recipe, trained_thought)
    renewed = config.thought.reset_marks_at_eval
    if renewed:
        params["thought"] |= source.fresh_marks(
            config, recipe.model, params["lm"], run.tokenizer, thought.embedding_scale
        )
    teacher = Loaded(
        params,
        recipe.model,
        run.tokenizer,
        thought,
        folders.local_source(run.root),
        str(row),
        run.mesh,
    )
    identity = {
        "teacher": record.origin_of(run.root, stage.teacher),
        "model": dataclasses.asdict(recipe.model),
        "thought": dataclasses.asdict(thought),
        "marks": renewed and [config.thought.start_text, config.thought.end_text],
        "rows": [data.digest(), recipe.batch_size],
        "seed": recipe.seed,
    }
    with Progress(f"stage {stage.number} teacher scores", 0, stage.steps) as bar:

        def progress(done: int, _: int) -> None:
            bar.advance_to(done)
            if done < stage.steps:
                run.interrupts.check(
                    f"teacher scores saved up to batch {done} of {stage.steps}; {RESUME}"
                )

        # Students of all positions and of last ones may share rows, but not scores.
        name = folders.SCORES[objective.teacher_positions(recipe)]
        folder = folders.stage_folder(run.root, stage.stream) / name
        with locks.FolderLock(folder):  # students of the same rows share it
            return score_rows(teacher, recipe, data, folder, record.digest(identity), progress)


def with_scores(
    batches: Batches, scores: np.ndarray, rows: np.ndarray, first: int, size: int
) -> Batches:
    """Batches from step `first` on, with the teacher's scores of their rows."""
    assert scores.dtype.names is not None  # records
    for step, batch in zip(itertools.count(first), batches):
        records = scores[step * size + rows]
        yield {**batch, **{name: records[name] for name in scores.dtype.names}}
