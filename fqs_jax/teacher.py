"""The teacher's part of the NTP stage: one float a token, scored once and kept.

The released code stores the teacher's whole mixed logits, 33 MB a sequence; the loss reads one
number of them, log p(x_{t+1}). Scores are written in pieces of some batches each, so that an
interrupted job goes on where it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fqs_jax import agreement, distributed, files, sharding, targets, thoughts
from fqs_jax import step as step_lib
from fqs_jax.data.order import Dataset
from fqs_jax.model import ModelConfig, Params
from fqs_jax.thoughts import ThoughtConfig

PIECE = 8  # batches in a file; a stop is heeded after each


def score_rows(
    params: Params,
    model: ModelConfig,
    thought: ThoughtConfig,
    dataset: Dataset,
    steps: int,
    seed: int,
    folder: Path,
    identity: str,
    progress: Callable[[int, int], None],
    mesh: Mesh | None = None,
    microbatches: int = 1,
) -> np.ndarray:
    """The teacher's log p(x_{t+1}) with one thought a position, float32 [steps * B, T - 1].

    Args:
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

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def score(params: Params, batch: dict[str, jax.Array], step: jax.Array) -> jax.Array:
        step_key = jax.random.fold_in(key, step)

        def score_part(part: dict[str, jax.Array]) -> jax.Array:
            scores, *_ = thoughts.sample_and_score(
                params,
                part["tokens"],
                step_key,
                model,
                thought,
                targets.segments(part),
                part["row"],
            )
            return scores.talk_BxPxRxA[:, : length - 1, 0, 0]

        batch = batch | {"row": jnp.arange(dataset.batch_size)}
        parts = jax.lax.map(score_part, step_lib.in_parts(batch, microbatches))
        return jnp.moveaxis(parts, 0, 1).reshape(dataset.batch_size, length - 1)

    def score_batch(step: int) -> np.ndarray:
        batch = {
            name: sharding.from_local_rows(local, rows, leaf)
            for name, local in dataset.batch(step, rows).items()
        }
        with jax.set_mesh(mesh):
            return np.asarray(score(params, batch, np.int32(step)))

    pieces = []
    for start in range(0, steps, PIECE):
        stop = min(start + PIECE, steps)
        path = folder / f"batches_{start:07d}_{stop:07d}.npy"
        piece = _read_piece(path, ((stop - start) * dataset.batch_size, length - 1))
        if agreement.anyone(piece is None):
            piece = np.concatenate([score_batch(step) for step in range(start, stop)])
            if distributed.is_main():
                files.replace(path, functools.partial(np.save, arr=piece))
        assert piece is not None  # nobody lacked it
        pieces.append(piece)
        progress(stop, steps)
    return np.concatenate(pieces)


def _read_piece(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """A piece that was kept; None if there is none, or it is damaged and must be made again."""
    try:
        piece: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return piece if piece.shape == shape and piece.dtype == np.float32 else None


def _check_identity(folder: Path, identity: str) -> None:
    """Drop pieces that another teacher made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "identity"
    if path.exists() and path.read_text() == identity:
        return
    for piece in folder.glob("batches_*.npy"):
        piece.unlink()
    path.write_text(identity)
