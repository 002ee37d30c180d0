"""Batches, which of their tokens are predicted, and means over those.

A batch is {"tokens": int32 [B, T], "mask": bool [B, T]}, mask False at padding, which nobody attends
to and nobody predicts. More keys it may have:

    segment           int32 [B, T]: documents of the row by number, 0 at padding; nobody attends to or
                      predicts a token of another document
    target            bool [B, T]: which tokens are predicted, instead of the mask
    teacher_log_prob  float32 [B, T - 1], for NTP and distillation: the teacher's log p(x_{t+1}) at t
    teacher_...       more that the teacher said, for distillation (objectives/distillation.py)
    row, counts       of a part of a batch (training/step.py): the number of each row in the whole, int32
                      [B], and the whole's `target_counts` over the number of parts; means over all parts
                      are then means over the whole
    weight            of a part likewise, for distillation: the whole's sum of `position_weights`
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


def segments(batch: Batch) -> jax.Array:
    """Which document each token is of, [B, T]: numbers, or bool where a row is one document."""
    return batch["segment"] if "segment" in batch else batch["mask"]


def talk_targets(batch: Batch, talk_steps: int) -> jax.Array:
    """Whether talk step s at t has something to predict, bool [B, A, T - 1].

    Its target x_{t+1+s} must be predicted at all, be of the document of x_t, and lie within the row.
    Step 0 is plain next-token prediction.
    """
    target_BxT = batch["target"] if "target" in batch else batch["mask"]
    segment_BxT = segments(batch)
    length = target_BxT.shape[1]

    def step(s: int) -> jax.Array:
        same = segment_BxT[:, 1 + s :] == segment_BxT[:, : length - 1 - s]
        return jnp.pad(target_BxT[:, 1 + s :] & same, ((0, 0), (0, s)))

    return jnp.stack([step(s) for s in range(talk_steps)], axis=1)


def target_counts(target_BxAxT: jax.Array) -> jax.Array:
    """How many targets each talk step has, float32 [A]."""
    return jnp.sum(target_BxAxT, axis=(0, 2), dtype=jnp.float32)


def counts(batch: Batch, target_BxAxT: jax.Array) -> jax.Array:
    """What means over targets are divided by: the batch's own counts, or those it is given."""
    return batch["counts"] if "counts" in batch else target_counts(target_BxAxT)


def position_weights(batch: Batch) -> jax.Array:
    """How much each position counts in distillation before division by their sum, float32 [B, T].

    A teacher's distribution is learned at every real position, also at the last of a document; a
    teacher's score of the next token only where there is one. `teacher_shift`, if there, weights them.
    """
    where_BxT = batch["mask"]
    if "teacher_log_probs" not in batch:
        where_BxT = jnp.pad(talk_targets(batch, 1)[:, 0], ((0, 0), (0, 1)))
    return where_BxT * batch.get("teacher_shift", jnp.float32(1))


def masked_mean(x: jax.Array, mask: jax.Array, count: jax.Array | None = None) -> jax.Array:
    """Mean of x where mask holds, or weighted by it if it is numbers; 0 where nothing is left.

    Args:
      mask: broadcasts to x. Where it is 0, x may be anything.
      count: divides the sum in place of the sum of the mask.
    """
    mask = jnp.broadcast_to(mask, x.shape)
    if count is None:
        count = jnp.sum(mask)
    return jnp.sum(jnp.where(mask > 0, x, 0.0) * mask) / jnp.where(count > 0, count, 1)
