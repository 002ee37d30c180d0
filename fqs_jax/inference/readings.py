"""Log-probabilities of given continuations, with thoughts only where a continuation is predicted."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fqs_jax.data.rows import windows
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import keys as keys_lib
from fqs_jax.thinking import prediction, talk_head
from fqs_jax.thinking.config import Thinker, ThoughtConfig

_TEXT = 64  # texts are padded to multiples of it, so that few programs serve all lengths
_READ = 32  # positions predicted at once: bounds the [B, P, V] log-probabilities


class Request(NamedTuple):
    """A continuation to score. Token ids; the context has at least one."""

    context: list[int]
    continuation: list[int]


class Score(NamedTuple):
    """log_prob: of the whole continuation, nats. greedy: each of its tokens was the likeliest."""

    log_prob: float
    greedy: bool


def encode(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Token ids of a text cut in two.

    The cut is made in the tokens of the whole text, since those of the parts may differ, and spaces
    at the end of the context go with the continuation, where tokenizers join them to the next word.
    This is the harness's own rule, so that scores compare. An empty context is the BOS token, or
    the end of the text before.

    Raises:
      UserError: the context is empty and the tokenizer has neither token.
    """
    kept = context.rstrip()
    before = tokenizer.opening + tokenizer.encode(kept)
    whole = tokenizer.opening + tokenizer.encode(context + continuation)
    if not before:
        before = [first_id(tokenizer)]
        whole = before + whole
    return Request(before, whole[len(before) :])


def first_id(tokenizer: Tokenizer) -> int:
    """What stands before a text that has nothing before it.

    Raises:
      UserError: the tokenizer has neither BOS nor end-of-text token.
    """
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        if token is not None:
            return token
    raise UserError("an empty context needs a tokenizer with a BOS or end-of-text token")


def score(
    loaded: Loaded,
    requests: Sequence[Request],
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Score], int]:
    """Score continuations in batches of like lengths.

    A thinking model samples one thought at each position whose next token belongs to a continuation,
    and none elsewhere. Draws depend on the seed, the number of the request and the position, not on
    the batches. A text longer than the model was made for loses tokens at its beginning.

    Args:
      progress: told how many requests are done.

    Returns:
      A Score a request, in order, and how many requests lost tokens.

    Raises:
      UserError: a continuation alone is too long.
    """
    longest = loaded.model.max_seq_len
    for request in requests:
        if len(request.continuation) > longest:
            raise UserError(
                f"a continuation of {len(request.continuation)} tokens is longer than the "
                f"{longest} that the model was made for; score a long text by windows"
            )
    rows = [(r.context + r.continuation)[-(longest + 1) :] for r in requests]
    cropped = sum(len(r.context + r.continuation) > longest + 1 for r in requests)
    counts = [len(r.continuation) for r in requests]
    results: list[Score] = [Score(0.0, True)] * len(requests)  # of nothing, where that was asked
    key, done = jax.random.key(seed), counts.count(0)
    for chosen, batch in _batches(loaded, rows, counts, batch_size):
        with jax.set_mesh(loaded.mesh):
            read = _read(loaded.params, batch, key, loaded.model, loaded.thought)
        log_prob_BxP, likeliest_BxP = map(np.asarray, read)
        for i, log_probs, likeliest in zip(chosen, log_prob_BxP, likeliest_BxP, strict=False):
            total = float(log_probs[: counts[i]].sum(dtype=np.float64))
            results[i] = Score(total, bool(likeliest[: counts[i]].all()))
        done += len(chosen)
        progress(done)
    return results, cropped


def _batches(
    loaded: Loaded, rows: Sequence[list[int]], counts: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Full batches, longest first, each of rows that round up to the same text length and number of
    continuation tokens; and which rows they hold. Short ones are filled up with empty rows."""

    def bucket(i: int) -> tuple[int, int]:
        length, count = len(rows[i]) - 1, counts[i]
        power = 1 << (count - 1).bit_length()
        return -(-length // _TEXT) * _TEXT, min(power, -(-count // _READ) * _READ)

    wanted = sorted((i for i, count in enumerate(counts) if count), key=bucket, reverse=True)
    for (T, P), group in itertools.groupby(wanted, bucket):
        members = list(group)
        for first in range(0, len(members), batch_size):
            chosen = members[first : first + batch_size]
            empty = {"tokens": T, "mask": T, "index": P, "target": P}
            arrays = {name: np.zeros((batch_size, n), np.int32) for name, n in empty.items()}
            for b, i in enumerate(chosen):
                row, start = rows[i], len(rows[i]) - 1 - counts[i]
                arrays["tokens"][b, : len(row) - 1] = row[:-1]
                arrays["mask"][b, : len(row) - 1] = 1
                arrays["index"][b] = np.minimum(start + np.arange(P), len(row) - 2)
                arrays["target"][b, : counts[i]] = row[start + 1 :]
            arrays["mask"] = arrays["mask"].astype(bool)
            arrays["row"] = np.pad(np.array(chosen, np.int32), (0, batch_size - len(chosen)))
            yield (
                chosen,
                {
                    name: jax.device_put(array, sharding.rows(array.shape, loaded.mesh))
                    for name, array in arrays.items()
                },
            )


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _read(
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig | None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities float32 [B, P] of the targets, and whether nothing is likelier, bool [B, P]."""
    hidden_BxTxD, cache = decoder.text_forward(params["lm"], batch["tokens"], model, batch["mask"])

    def read(places: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index_BxP, target_BxP = places
        base_BxPxD = jnp.take_along_axis(hidden_BxTxD, index_BxP[..., None], axis=1)
        if thought is None:
            log_probs = jax.nn.log_softmax(decoder.head_logits(params["lm"], base_BxPxD))
        else:
            keys = keys_lib.thought_keys(key, index_BxP, thought.rationales, batch["row"])
            thinker = Thinker(model, thought)
            following = prediction.after_thoughts(
                params, cache, base_BxPxD, keys, thinker, batch["mask"], index_BxP
            )
            log_probs = talk_head.mean_log_probs(following.log_prob_BxPxRxV, axis=2)
        target_log_prob = jnp.take_along_axis(log_probs, target_BxP[..., None], axis=-1)[..., 0]
        return target_log_prob, jnp.argmax(log_probs, -1) == target_BxP

    def chunks(x_BxP: jax.Array) -> jax.Array:
        B, P = x_BxP.shape
        return jnp.moveaxis(x_BxP.reshape(B, -1, min(P, _READ)), 1, 0)

    parts = jax.lax.map(read, (chunks(batch["index"]), chunks(batch["target"])))
    log_prob, likeliest = (jnp.moveaxis(part, 0, 1).reshape(batch["index"].shape) for part in parts)
    return log_prob, likeliest


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _answer_log_probs(
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    row_B: jax.Array,
    answer_ids: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig | None,
) -> jax.Array:
    tokens, mask = batch["tokens"], batch["mask"]
    last_Bx1 = jnp.sum(mask, axis=1, keepdims=True) - 1
    keys = None
    if thought is not None:
        keys = keys_lib.thought_keys(key, last_Bx1, thought.rationales, row_B)
    plain, mixed = prediction.predict_at(params, tokens, last_Bx1, keys, model, thought, mask)
    log_probs = plain[:, 0] if mixed is None else mixed[:, 0, 0]
    return log_probs[:, answer_ids]


def answer_log_probs(
    loaded: Loaded, prompts: Sequence[str], answers: Sequence[str], batch_size: int, seed: int
) -> np.ndarray:
    """Log-probability of each one-token answer after each prompt, renormalised over the answers.

    A thinking model thinks once, at the prompt's last token. Prompts of like length share a batch; what
    is drawn depends on the seed and the prompt's place in the list alone.

    Returns:
      float32 [prompts, answers].
    """
    tokenizer = loaded.tokenizer
    ids = [tokenizer.opening + encoded for encoded in tokenizer.encode_batch(list(prompts))]
    rows = windows.pad_rows(
        [np.array(row, np.int32) for row in ids], max(map(len, ids)), tokenizer.pad_id
    )
    answer_ids = jnp.array([encoded[0] for encoded in tokenizer.encode_batch(list(answers))])
    key = jax.random.key(seed)
    scores = np.zeros((len(prompts), len(answers)), np.float32)
    for chosen, batch in batches(rows, batch_size, loaded.mesh):
        row_B = np.pad(chosen, (0, batch_size - len(chosen)))
        with jax.set_mesh(loaded.mesh):
            log_probs = _answer_log_probs(
                loaded.params, batch, key, row_B, answer_ids, loaded.model, loaded.thought
            )
        scores[chosen] = np.asarray(jax.nn.log_softmax(log_probs))[: len(chosen)]
    return scores


def batches(
    rows: windows.Batch, batch_size: int, mesh: Mesh
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Full batches of the rows, short ones filled up with empty rows, dealt out to the mesh.

    Rows are sorted by length, and each batch is cut to a multiple of 64 that holds its longest.

    Yields:
      Which rows they are, and the batch.
    """
    lengths = rows["mask"].sum(axis=1)
    order = np.argsort(-lengths, kind="stable")
    full = rows["tokens"].shape[1]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        longest = int(lengths[chosen].max())
        length = min(full, -(-longest // 64) * 64)
        missing = batch_size - len(chosen)
        where = sharding.rows((batch_size, length), mesh)
        yield (
            chosen,
            {
                name: jax.device_put(
                    np.pad(rows[name][chosen, :length], ((0, missing), (0, 0))), where
                )
                for name in ("tokens", "mask")
            },
        )
