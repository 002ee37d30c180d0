"""A teacher's predictions for rows of text.

NTP needs one float for each token: the released code stores the teacher's whole mixed logits, 33 MB a
sequence, but its loss reads only log p(x_{t+1}). Distillation needs more (`distillation.teacher_arrays`).
"""

from __future__ import annotations

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
    tokens_BxT, segment_BxT = batch["tokens"], batch_lib.segments(batch)
    lm = params["lm"]
    base_BxTxD, cache = decoder.text_forward(
        lm, tokens_BxT, thinker.model, segment_BxT, packed="segment" in batch
    )
    position_BxT = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
    keys_BxTxR = keys_lib.thought_keys(key, position_BxT, thinker.thought.rationales, batch["row"])
    _, after_BxTxRxD = sampling.rollout(params, cache, keys_BxTxR, thinker, segment_BxT)
    shape, _ = arrays.get("teacher_ids", ((0,), None))

    def read(base: jax.Array, others: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        after, following = others
        mixed, _ = mixed_log_probs(params, base[:, :, None], after, thinker.thought)
        log_p = talk_head.mean_log_probs(mixed, axis=2)
        plain = jax.nn.softmax(decoder.head_logits(lm, base))
        found = {
            "teacher_log_prob": jnp.take_along_axis(log_p, following[..., None], -1)[..., 0],
            "teacher_log_probs": log_p,
            "teacher_shift": jnp.sum(jnp.abs(jnp.exp(log_p) - plain), -1) / 2,
        }
        if top_k := shape[-1]:
            found["teacher_log_probs"], found["teacher_ids"] = jax.lax.top_k(log_p, top_k)
        return {name: found[name] for name in arrays}

    chunk = thinker.model.vocab_chunk
    chunk = chunk and max(1, chunk // thinker.thought.rationales)
    others = (after_BxTxRxD, jnp.roll(tokens_BxT, -1, axis=1))
    found = vocab.by_chunks(read, chunk, base_BxTxD, others)
    return found | {"teacher_log_prob": found["teacher_log_prob"][:, :-1]}
