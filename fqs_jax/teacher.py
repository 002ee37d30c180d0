"""The teacher's part of the NTP stage: one float a token, scored once and kept.

The released code stores the teacher's whole mixed logits, 33 MB a sequence; the loss reads one
number of them, log p(x_{t+1}). Scores are written in pieces of some batches each, so that an
interrupted job goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from fqs_jax import thoughts
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
) -> np.ndarray:
    """The teacher's log p(x_{t+1}) with one thought a position, float32 [steps * B, T - 1].

    Args:
      dataset: its first `steps` batches are scored, the rows the stage trains on.
      folder: where pieces are kept; pieces made under another `identity` are made again.
      progress: called with (batches done, batches in all) after each piece; may raise to stop.
    """
    _check_identity(folder, identity)
    length = dataset.seq_len
    key = jax.random.key(seed)

    @jax.jit
    def score(params: Params, batch: dict[str, jax.Array], step: jax.Array) -> jax.Array:
        tokens, mask = batch["tokens"], batch["mask"]
        step_key = jax.random.fold_in(key, step)
        drawn, _ = thoughts.sample_thoughts(params, tokens, step_key, model, thought, mask)
        scores = thoughts.score_thoughts(params, tokens, drawn, model, thought, mask)
        return scores.talk_BxPxRxA[:, : length - 1, 0, 0]

    pieces = []
    for start in range(0, steps, PIECE):
        stop = min(start + PIECE, steps)
        path = folder / f"batches_{start:07d}_{stop:07d}.npy"
        if not path.exists():
            scored = [
                np.asarray(score(params, dataset.batch(s), np.int32(s))) for s in range(start, stop)
            ]
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.save(file, np.concatenate(scored))
            temporary.replace(path)
        pieces.append(np.load(path, allow_pickle=False))
        progress(stop, steps)
    return np.concatenate(pieces)


def _check_identity(folder: Path, identity: str) -> None:
    """Drop pieces that another teacher made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "identity"
    if path.exists() and path.read_text() == identity:
        return
    for piece in folder.glob("batches_*.npy"):
        piece.unlink()
    path.write_text(identity)
