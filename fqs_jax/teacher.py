"""The teacher's part of the stages that have one: what it says of their rows, asked once and kept.

For NTP that is one float a token: the released code stores the teacher's whole mixed logits, 33 MB a
sequence, of which the loss reads one number, log p(x_{t+1}). Distillation keeps more
(`distillation.teacher_arrays`). Scores are written in pieces of some batches each, so that an
interrupted job goes on where it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fqs_jax import step as step_lib
from fqs_jax.data.rows.order import Dataset
from fqs_jax.model import decoder, vocab
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives.distillation import Arrays
from fqs_jax.runtime import agreement, files, processes, sharding
from fqs_jax.thinking import keys as keys_lib
from fqs_jax.thinking import sampling, talk_head, thoughts
from fqs_jax.thinking.config import ThoughtConfig
from fqs_jax.thinking.prediction import mixed_log_probs

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


def label_log_probs(
    params: Params,
    batch: batch_lib.Batch,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """{"teacher_log_prob": log p(x_{t+1}) [B, T - 1]}, its probability the mean over thoughts."""
    del arrays
    scores, *_ = thoughts.sample_and_score(
        params,
        batch["tokens"],
        key,
        model,
        thought,
        batch_lib.segments(batch),
        batch["row"],
    )
    log_prob_BxTxR = scores.talk_BxPxRxA[:, :-1, :, 0]
    return {"teacher_log_prob": talk_head.mean_log_probs(log_prob_BxTxR, axis=-1)}


def predictions(
    params: Params,
    batch: batch_lib.Batch,
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig,
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """What distillation keeps of rows [B, ...] (`distillation.teacher_arrays`).

    Whole distributions [B, T, R, V] never exist: they are made and read some positions at a time.
    """
    tokens_BxT, segment_BxT = batch["tokens"], batch_lib.segments(batch)
    lm = params["lm"]
    base_BxTxD, (text_key, text_value) = decoder.text_forward(lm, tokens_BxT, model, segment_BxT)
    where_BxT = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
    keys_BxTxR = keys_lib.thought_keys(key, where_BxT, thought.rationales, batch["row"])
    text = sampling.TextCache(text_key, text_value, segment_BxT)
    _, _, after_BxTxRxD = sampling.rollout(
        params, text, keys_BxTxR, model, thought, None, finish=True
    )
    shape, _ = arrays.get("teacher_ids", ((0,), None))

    def read(base: jax.Array, others: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        after, following = others
        mixed, _ = mixed_log_probs(params, base[:, :, None], after, thought)
        log_p = talk_head.mean_log_probs(mixed, axis=2)
        plain = jax.nn.softmax(decoder.head_logits(lm, base))
        said = {
            "teacher_log_prob": jnp.take_along_axis(log_p, following[..., None], -1)[..., 0],
            "teacher_log_probs": log_p,
            "teacher_shift": jnp.sum(jnp.abs(jnp.exp(log_p) - plain), -1) / 2,
        }
        if top_k := shape[-1]:
            said["teacher_log_probs"], said["teacher_ids"] = jax.lax.top_k(log_p, top_k)
        return {name: said[name] for name in arrays}

    chunk = model.vocab_chunk and max(1, model.vocab_chunk // thought.rationales)
    others = (after_BxTxRxD, jnp.roll(tokens_BxT, -1, axis=1))
    said = vocab.by_chunks(read, chunk, base_BxTxD, others)
    return said | {"teacher_log_prob": said["teacher_log_prob"][:, :-1]}


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
