"""Teacher scores of a stage's training rows, computed once and cached on disk."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fqs_jax.curriculum import objective, settings
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data.rows.order import Dataset
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.objectives.distillation import Arrays
from fqs_jax.runs import folders, loading, record, source
from fqs_jax.runtime import agreement, files, processes, sharding
from fqs_jax.runtime.progress import Progress
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.training import step as step_lib
from fqs_jax.training.start import RESUME, Batches, Run
from fqs_jax.training.teacher import label_log_probs, predictions

PIECE = 8  # batches in a file; a stop is heeded after each


def score_rows(
    params: Params,
    model: ModelConfig,
    thought: ThoughtConfig,
    arrays: Arrays,
    dataset: Dataset,
    steps: int,
    seed: int,
    folder: Path,
    identity: str,
    progress: Callable[[int, int], None],
    mesh: Mesh | None = None,
    microbatches: int = 1,
) -> np.ndarray:
    """What the teacher says of rows: steps * B records, with `arrays` as their fields.

    Args:
      thought: with as many rationales as its prediction is averaged over.
      arrays: names, shapes and types of what is kept of a row; `log_prob` alone is read off without
        the whole vocabulary.
      dataset: its first `steps` batches are scored, the rows the stage trains on.
      folder: where pieces are kept; pieces made under another `identity` are made again.
      progress: called with (batches done, batches in all) after each piece; may raise to stop.
      mesh: of the parameters; None = one device. Of several processes the first one writes.
      microbatches: parts in which a batch is scored, for less memory; the scores are the same.
    """
    agreement.on_main(lambda: _check_identity(folder, identity))
    length = dataset.seq_len
    key = jax.random.key(seed)
    mesh = mesh or sharding.single_device()
    shape = (dataset.batch_size, length)
    leaf = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding.rows(shape, mesh))
    rows = sharding.local_rows(leaf)

    record = np.dtype([(name, dtype, shape) for name, (shape, dtype) in arrays.items()])
    say = label_log_probs if list(arrays) == ["teacher_log_prob"] else predictions

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def score(params: Params, batch: dict[str, jax.Array], step: jax.Array) -> dict[str, jax.Array]:
        step_key = jax.random.fold_in(key, step)

        def score_part(part: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return say(params, part, step_key, model, thought, arrays)

        batch = batch | {"row": jnp.arange(dataset.batch_size)}
        parts = jax.lax.map(score_part, step_lib.in_parts(batch, microbatches))
        return jax.tree.map(
            lambda x: jnp.moveaxis(x, 0, 1).reshape(dataset.batch_size, *x.shape[2:]), parts
        )

    def score_batch(step: int) -> np.ndarray:
        batch = {
            name: sharding.from_local_rows(local, rows, leaf)
            for name, local in dataset.batch(step, rows).items()
        }
        records = np.empty(dataset.batch_size, record)
        with jax.set_mesh(mesh):
            for name, said in score(params, batch, np.int32(step)).items():
                records[name] = said
        return records

    scores = np.empty(steps * dataset.batch_size, record)
    for start in range(0, steps, PIECE):
        stop = min(start + PIECE, steps)
        path = folder / f"batches_{start:07d}_{stop:07d}.npy"
        piece = _read_piece(path, (stop - start) * dataset.batch_size, record)
        if agreement.anyone(piece is None):
            piece = np.concatenate([score_batch(step) for step in range(start, stop)])
            if processes.is_main():
                files.replace(path, functools.partial(np.save, arr=piece))
        assert piece is not None  # nobody lacked it
        scores[start * dataset.batch_size : stop * dataset.batch_size] = piece
        progress(stop, steps)
    return scores


def _read_piece(path: Path, size: int, record: np.dtype) -> np.ndarray | None:
    """What is needed of a piece that was kept; None if there is none, or it lacks some or is damaged."""
    try:
        piece: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    kept: Any = piece.dtype.fields or {}
    assert record.fields is not None
    if piece.shape != (size,) or any(
        kept.get(n, ())[:1] != f[:1] for n, f in record.fields.items()
    ):
        return None
    needed = np.empty(size, record)
    for name in record.fields:
        needed[name] = piece[name]
    return needed


def _check_identity(folder: Path, identity: str) -> None:
    """Drop pieces that another teacher made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "identity"
    if path.exists() and path.read_text() == identity:
        return
    for piece in folder.glob("batches_*.npy"):
        piece.unlink()
    path.write_text(identity)


def teacher_scores(run: Run, stage: Stage, data: Dataset) -> np.ndarray | None:
    """For a taught stage, what its teacher says of all its rows, made now or before; else None.

    The result has one record a row (`teacher_scores.score_rows`). Stages that read the same rows share it.
    """
    config = run.config
    arrays = objective.teacher_arrays(config, stage, run.model)
    if not arrays:
        return None
    assert stage.teacher is not None  # checked when the row was read
    params, row = loading.load_stage(
        run.root, stage.teacher, run.command(stage.teacher), mesh=run.mesh
    )
    renewed = config.thought.reset_marks_at_eval
    if renewed:
        params["thought"].update(source.fresh_marks(config, params["lm"], run.tokenizer))
    _, teacher_config = folders.read_run(run.root, stage.teacher)
    thought = settings.teacher_thought(config, stage, teacher_config, row)
    said_by = {
        "teacher": record.origin_of(run.root, stage.teacher),
        "model": dataclasses.asdict(run.model),
        "thought": dataclasses.asdict(thought),
        "marks": renewed and [config.thought.start_text, config.thought.end_text],
        "rows": [data.digest(), config.batch_size],
        "seed": config.seed,
    }
    with Progress(f"stage {stage.number} teacher scores", 0, stage.steps) as bar:

        def progress(done: int, _: int) -> None:
            bar.advance_to(done)
            if done < stage.steps:
                run.interrupts.check(
                    f"teacher scores saved up to batch {done} of {stage.steps}; {RESUME}"
                )

        return score_rows(
            params,
            run.model,
            thought,
            arrays,
            data,
            stage.steps,
            config.seed,
            folders.stage_folder(run.root, stage.stream) / "teacher",
            record.digest(said_by),
            progress,
            run.mesh,
            config.microbatches,
        )


def with_scores(
    batches: Batches, scores: np.ndarray, rows: np.ndarray, first: int, size: int
) -> Batches:
    """Batches from step `first` on with what the teacher says of their rows."""
    assert scores.dtype.names is not None  # records
    for step, batch in zip(itertools.count(first), batches):
        records = scores[step * size + rows]
        yield {**batch, **{name: records[name] for name in scores.dtype.names}}
