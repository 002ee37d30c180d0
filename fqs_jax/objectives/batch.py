"""Batches, their prediction targets, and means over those.

A batch is {"tokens": int32 [B, T], "mask": bool [B, T]}. The mask is False at padding, which is never
attended to and never predicted. A batch may also have

    segment           int32 [B, T]: number of each token's document in the row, 0 for padding; tokens of
                      other documents are never attended to or predicted
    target            bool [B, T]: the tokens to predict, instead of those of the mask
    teacher_log_prob  float32 [B, T - 1], for NTP and distillation: the teacher's log p(x_{t+1}) at t
    teacher_...       other predictions of the teacher, for distillation (objectives/distillation.py)
    row               int32 [B], in a microbatch (training/step.py): the number of each row in the batch
    counts            in a microbatch: the batch's `target_counts` divided by the number of microbatches,
                      so that means over microbatches are means over the batch
    weight            in a microbatch, for distillation: likewise for the sum of `position_weights`

U = T - 1 below: the last token has no target.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime.axes import check_axes

Batch = dict[str, jax.Array]


def check_batch(batch: Batch) -> None:
    """Refuse a batch whose arrays have other axes than described above.

    Raises:
      AssertionError: names the array.
    """
    over_text = ("tokens", "mask", "segment", "target")
    arrays = {f"{name}_BxT": batch[name] for name in over_text if name in batch}
    if "teacher_log_prob" in batch:
        arrays["teacher_log_prob_BxU"] = batch["teacher_log_prob"]
    check_axes(**arrays, U=batch["tokens"].shape[-1] - 1)


def segments(batch: Batch) -> jax.Array:
    """Document of each token, int32 [B, T], 0 for padding; 1 for all others where rows are not packed."""
    return batch["segment"] if "segment" in batch else batch["mask"].astype(jnp.int32)


def read_batch(lm: Params, batch: Batch, model: ModelConfig) -> jax.Array:
    """Final-norm hidden states [B, T, D] of a batch's plain causal pass."""
    check_batch(batch)
    packed = "segment" in batch
    return decoder.text_forward(lm, batch["tokens"], model, segments(batch), packed)[0]


def talk_targets(batch: Batch, talk_steps: int) -> jax.Array:
    """True where talk step s at position t has a target, bool [B, A, U].

    The target x_{t+1+s} must be a token to predict, in the document of x_t, and within the row.
    Step 0 is plain next-token prediction.
    """
    target_BxT = batch["target"] if "target" in batch else batch["mask"]
    segment_BxT = segments(batch)
    length = target_BxT.shape[1]

    def step(s: int) -> jax.Array:
        same = segment_BxT[:, 1 + s :] == segment_BxT[:, : length - 1 - s]
        return jnp.pad(target_BxT[:, 1 + s :] & same, ((0, 0), (0, s)))

    return jnp.stack([step(s) for s in range(talk_steps)], axis=1)


def target_counts(target_BxAxU: jax.Array) -> jax.Array:
    """Number of targets of each talk step, float32 [A]."""
    return jnp.sum(target_BxAxU, axis=(0, 2), dtype=jnp.float32)


def counts(batch: Batch, target_BxAxU: jax.Array) -> jax.Array:
    """Divisors [A] of means over targets: the batch's own counts, or those that it carries."""
    return batch["counts"] if "counts" in batch else target_counts(target_BxAxU)


def position_weights(batch: Batch) -> jax.Array:
    """Weights of positions in distillation, before division by their sum, float32 [B, T] or [B, 1].

    A teacher's distribution is learned at every real position, also at the last of a document; a
    teacher's score of the next token only where one follows, and where only some tokens are targets,
    both only in front of those. `teacher_shift` weights them, if given. Where the teacher speaks of
    the last position alone, those are the weights, [B, 1].
    """
    learned = batch.get("teacher_log_probs")
    if learned is not None and learned.shape[1] < batch["tokens"].shape[1]:
        real_Bx1 = jnp.any(batch["mask"], axis=1, keepdims=True)
        return real_Bx1 * batch.get("teacher_shift", jnp.float32(1))
    counted_BxT = batch["mask"]
    if "teacher_log_probs" not in batch or "target" in batch:
        counted_BxT = jnp.pad(talk_targets(batch, 1)[:, 0], ((0, 0), (0, 1)))
    return counted_BxT * batch.get("teacher_shift", jnp.float32(1))


def last_positions(batch: Batch) -> jax.Array:
    """The last real position of each row, int32 [B, 1]; 0 in a row of padding."""
    count_Bx1 = jnp.sum(batch["mask"], axis=1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(count_Bx1 - 1, 0)


def masked_mean(x: jax.Array, mask: jax.Array, count: jax.Array | None = None) -> jax.Array:
    """Mean of x over a mask, or weighted by it if it is numeric; 0 if the mask is 0 everywhere.

    Args:
      mask: broadcasts to x. Where it is 0, x may be anything.
      count: divides the sum, instead of the sum of the mask.
    """
    mask = jnp.broadcast_to(mask, x.shape)
    if count is None:
        count = jnp.sum(mask)
    return jnp.sum(jnp.where(mask > 0, x, 0.0) * mask) / jnp.where(count > 0, count, 1)
