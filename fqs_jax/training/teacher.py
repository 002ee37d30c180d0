"""A teacher's predictions for rows of text.

NTP needs one float for each token: the released code stores the teacher's whole mixed logits, 33 MB a
sequence, but its loss reads only log p(x_{t+1}). Distillation needs more (`distillation.teacher_arrays`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fqs_jax.model import decoder, vocab
from fqs_jax.model.decoder import Params
from fqs_jax.objectives import batch as batch_lib
from fqs_jax.objectives.distillation import Arrays
from fqs_jax.thinking import keys as keys_lib
from fqs_jax.thinking import sampling, talk_head, thoughts
from fqs_jax.thinking.config import Thinker
from fqs_jax.thinking.prediction import mixed_log_probs


def label_log_probs(
    params: Params,
    batch: batch_lib.Batch,
    key: jax.Array,
    thinker: Thinker,
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """{"teacher_log_prob": log p(x_{t+1}) [B, T - 1]}, its probability the mean over thoughts."""
    del arrays
    scores = thoughts.sample_and_score(
        params,
        batch["tokens"],
        key,
        thinker,
        batch_lib.segments(batch),
        batch["row"],
        packed="segment" in batch,
    )
    log_prob_BxTxR = scores.blocks.talk_BxPxRxA[:, :-1, :, 0]
    return {"teacher_log_prob": talk_head.mean_log_probs(log_prob_BxTxR, axis=-1)}


def predictions(
    params: Params,
    batch: batch_lib.Batch,
    key: jax.Array,
    thinker: Thinker,
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """The arrays that distillation needs for rows [B, ...] (`distillation.teacher_arrays`).

    Whole distributions [B, T, R, V] never exist: they are made and read some positions at a time.
    """
    text = _Text.of(params, batch, thinker)
    after_BxTxRxD = text.after_thoughts(params, key)
    others = (after_BxTxRxD, text.following_BxT)

    def read(base: jax.Array, others: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        return _read(params, base, *others, thinker, arrays)

    chunk = thinker.model.vocab_chunk
    chunk = chunk and max(1, chunk // thinker.thought.rationales)
    found = vocab.by_chunks(read, chunk, text.base_BxTxD, others)
    return found | {"teacher_log_prob": found["teacher_log_prob"][:, :-1]}


def predictions_at_last(
    params: Params,
    batch: batch_lib.Batch,
    key: jax.Array,
    thinker: Thinker,
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """The arrays of `predictions` at the last position of each row alone [B, 1, ...].

    There the answer to a question without one would begin. In a row of T tokens that costs a T-th of the
    thoughts.
    """
    text = _Text.of(params, batch, thinker)
    index_Bx1 = batch_lib.last_positions(batch)
    after_Bx1xRxD = text.after_thoughts(params, key, index_Bx1)
    base_Bx1xD = jnp.take_along_axis(text.base_BxTxD, index_Bx1[..., None], axis=1)
    following_Bx1 = jnp.take_along_axis(text.following_BxT, index_Bx1, axis=1)
    return _read(params, base_Bx1xD, after_Bx1xRxD, following_Bx1, thinker, arrays)


class _Text(NamedTuple):
    """Rows that a teacher has read.

    Attributes:
      base_BxTxD: final-norm hidden states.
      following_BxT: the next token, at the end of a row the first.
    """

    base_BxTxD: jax.Array
    following_BxT: jax.Array
    segment_BxT: jax.Array
    row_B: jax.Array
    cache: decoder.KeysValues
    thinker: Thinker

    @classmethod
    def of(cls, params: Params, batch: batch_lib.Batch, thinker: Thinker) -> _Text:
        tokens_BxT, segment_BxT = batch["tokens"], batch_lib.segments(batch)
        base_BxTxD, cache = decoder.text_forward(
            params["lm"], tokens_BxT, thinker.model, segment_BxT, packed="segment" in batch
        )
        following_BxT = jnp.roll(tokens_BxT, -1, axis=1)
        return cls(base_BxTxD, following_BxT, segment_BxT, batch["row"], cache, thinker)

    def after_thoughts(
        self, params: Params, key: jax.Array, index_BxP: jax.Array | None = None
    ) -> jax.Array:
        """Final-norm hidden states behind thoughts [B, P, R, D]; P = T without an index."""
        position_BxP = index_BxP
        if position_BxP is None:
            T = self.following_BxT.shape[1]
            position_BxP = jnp.broadcast_to(jnp.arange(T), self.following_BxT.shape)
        rationales = self.thinker.thought.rationales
        keys_BxPxR = keys_lib.thought_keys(key, position_BxP, rationales, self.row_B)
        return sampling.rollout(
            params, self.cache, keys_BxPxR, self.thinker, self.segment_BxT, index_BxP
        )[1]


def _read(
    params: Params,
    base_BxPxD: jax.Array,
    after_BxPxRxD: jax.Array,
    following_BxP: jax.Array,
    thinker: Thinker,
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """The arrays at some positions, read off the mean over thoughts of the mixed predictions."""
    mixed, _ = mixed_log_probs(params, base_BxPxD[:, :, None], after_BxPxRxD, thinker.thought)
    log_p = talk_head.mean_log_probs(mixed, axis=2)
    plain = jax.nn.softmax(decoder.head_logits(params["lm"], base_BxPxD))
    found = {
        "teacher_log_prob": jnp.take_along_axis(log_p, following_BxP[..., None], -1)[..., 0],
        "teacher_log_probs": log_p,
        "teacher_shift": jnp.sum(jnp.abs(jnp.exp(log_p) - plain), -1) / 2,
    }
    shape, _ = arrays.get("teacher_ids", ((0,), None))
    if top_k := shape[-1]:
        found["teacher_log_probs"], found["teacher_ids"] = jax.lax.top_k(log_p, top_k)
    return {name: found[name] for name in arrays}
