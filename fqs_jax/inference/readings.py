"""Log-probabilities of given tokens at a few positions of given texts, after thoughts if the model thinks.

A thinking model thinks only at the positions that are read, several thoughts behind one text pass.
Draws depend on the seed, the number of the row, the position and the thought, never on the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fqs_jax.data.problems import answer_tokens
from fqs_jax.data.rows import windows
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import keys as keys_lib
from fqs_jax.thinking import prediction, talk_head
from fqs_jax.thinking.config import Thinker, ThoughtConfig

# Rows are padded to a power of two of tokens and positions, at least these, so that few programs
# serve all sizes.
_LENGTH, _POSITIONS = 64, 4
_AT_ONCE = (
    512  # predictions [rows, positions, thoughts] at once: bounds the log-probabilities [..., V]
)

Advance = Callable[[int, int], None]


@dataclasses.dataclass
class Row:
    """Tokens for the model, and the log-probabilities that are read.

    Attributes:
      tokens: at least one id.
      reads: ids whose log-probability as the next token is read, by position.
      number: selects the thoughts that are drawn: rows of one number draw equal thoughts behind
        equal texts.
    """

    tokens: list[int]
    reads: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    number: int = 0


class Reading(NamedTuple):
    """Log-probabilities in nats at the P positions of a row, in the order of its `reads`; float64.

    plain_PxA: without a thought, of up to A ids; beyond a position's own ids there is no meaning.
    thinking_RxPxA: after each of R thoughts; R = 0 for a model that does not think.
    likeliest_P: the id with the highest probability, averaged over thoughts if the model thinks.
    """

    plain_PxA: np.ndarray
    thinking_RxPxA: np.ndarray
    likeliest_P: np.ndarray

    @property
    def best_RxPxA(self) -> np.ndarray:
        """The model's own prediction: after thoughts if it thinks, else plain with R = 1."""
        return self.thinking_RxPxA if len(self.thinking_RxPxA) else self.plain_PxA[None]


def read(
    loaded: Loaded,
    rows: Sequence[Row],
    batch_size: int = 32,
    seed: int = 0,
    progress: Advance = lambda done, total: None,
) -> list[Reading]:
    """Read rows in batches of like sizes, `loaded.thought.rationales` thoughts at each position.

    Args:
      rows: at least one of them reads an id.
      progress: called with the number of rows done and of all rows.

    Returns:
      A Reading a row, in order.
    """
    readings: dict[int, Reading] = {}  # by number of the row
    key = jax.random.key(seed)
    thoughts = loaded.thought.rationales if loaded.thought is not None else 1
    for chosen, arrays in _row_batches(rows, min(batch_size, len(rows)), thoughts):
        batch = place(arrays, loaded.mesh)
        with jax.set_mesh(loaded.mesh):
            found = _log_probs(loaded.params, batch, key, loaded.model, loaded.thought)
        plain, thinking = (np.asarray(table, np.float64) for table in found[:2])
        likeliest = np.asarray(found[2])
        for b, i in enumerate(chosen):
            P, A = len(rows[i].reads), max(map(len, rows[i].reads.values()), default=0)
            readings[i] = Reading(plain[b, :P, :A], thinking[b, :, :P, :A], likeliest[b, :P])
        progress(len(readings), len(rows))
    return [readings[i] for i in range(len(rows))]


def check_finite(loaded: Loaded, found: Sequence[Reading], numbers: Sequence[int]) -> None:
    """Raises UserError if a log-probability is not finite; `numbers` are those of the items, from 0."""
    for reading, number in zip(found, numbers, strict=True):
        if not np.isfinite(reading.plain_PxA).all() or not np.isfinite(reading.best_RxPxA).all():
            raise UserError(
                f"the loss of {loaded.label} is not finite, first in item {number + 1}: the model is "
                "broken; use another checkpoint"
            )


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Numbers of the rows that share a batch, longest first, and the length they are padded to."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    most = -(-max(lengths, default=0) // 32) * 32
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, _rounded(lengths[chosen[0]], _LENGTH, most)


def place(arrays: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Arrays on the mesh, sharded by rows."""
    return {
        name: jax.device_put(array, sharding.rows(array.shape, mesh))
        for name, array in arrays.items()
    }


def _rounded(size: int, least: int, most: int) -> int:
    """The size up to a power of two, within limits that hold it."""
    return min(max(least, 1 << (size - 1).bit_length()), most)


def _positions_at_once(rows: int, thoughts: int) -> int:
    """Positions predicted at once in a batch, a power of two."""
    return 1 << (max(1, _AT_ONCE // (rows * thoughts)).bit_length() - 1)


def _row_batches(
    rows: Sequence[Row], batch_size: int, thoughts: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Numbers of the rows of each batch, and its arrays; short batches are filled up with rows of
    one token."""
    at_once = _positions_at_once(batch_size, thoughts)
    most = max(len(row.reads) for row in rows)
    most = most if most <= at_once else -(-most // at_once) * at_once
    A = max(len(ids) for row in rows for ids in row.reads.values())

    def positions(i: int) -> int:
        return _rounded(len(rows[i].reads), _POSITIONS, most)

    for P, members in itertools.groupby(sorted(range(len(rows)), key=positions), positions):
        group = list(members)
        for places, T in batches([len(rows[i].tokens) for i in group], batch_size):
            chosen = [group[n] for n in places]
            tokens = [rows[i].tokens for i in chosen] + [[0]] * (batch_size - len(chosen))
            index_BxP = np.zeros((batch_size, P), np.int32)
            ids_BxPxA = np.zeros((batch_size, P, A), np.int32)
            number_B = np.zeros(batch_size, np.int32)
            for b, i in enumerate(chosen):
                number_B[b] = rows[i].number
                index_BxP[b, : len(rows[i].reads)] = list(rows[i].reads)
                for p, ids in enumerate(rows[i].reads.values()):
                    ids_BxPxA[b, p, : len(ids)] = ids
            more = {"index": index_BxP, "ids": ids_BxPxA, "number": number_B}
            yield chosen, windows.pad_rows(tokens, T, 0) | more


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _log_probs(
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities of the ids, float32: plain [B, P, A], after thoughts [B, R, P, A], R = 0
    without; and the likeliest ids int32 [B, P]."""
    hidden_BxTxD, cache = decoder.text_forward(params["lm"], batch["tokens"], model, batch["mask"])

    def predict(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        index_BxP, ids_BxPxA = part
        base_BxPxD = jnp.take_along_axis(hidden_BxTxD, index_BxP[..., None], axis=1)
        plain_BxPxV = jax.nn.log_softmax(decoder.head_logits(params["lm"], base_BxPxD))
        plain_BxPxA = jnp.take_along_axis(plain_BxPxV, ids_BxPxA, axis=-1)
        if thought is None:
            none_BxPx0xA = jnp.zeros((*index_BxP.shape, 0, ids_BxPxA.shape[-1]))
            return plain_BxPxA, none_BxPx0xA, jnp.argmax(plain_BxPxV, -1)
        keys = keys_lib.thought_keys(key, index_BxP, thought.rationales, batch["number"])
        thinker = Thinker(model, thought)
        mixed_BxPxRxV = prediction.after_thoughts(
            params, cache, base_BxPxD, keys, thinker, batch["mask"], index_BxP
        ).log_prob_BxPxRxV
        thinking_BxPxRxA = jnp.take_along_axis(mixed_BxPxRxV, ids_BxPxA[:, :, None], axis=-1)
        mean_BxPxV = talk_head.mean_log_probs(mixed_BxPxRxV, axis=2)
        return plain_BxPxA, thinking_BxPxRxA, jnp.argmax(mean_BxPxV, -1)

    B, P = batch["index"].shape
    at_once = min(P, _positions_at_once(B, thought.rationales if thought is not None else 1))

    def chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(B, -1, at_once, *x.shape[2:]), 1, 0)

    parts = jax.lax.map(predict, (chunks(batch["index"]), chunks(batch["ids"])))
    plain, thinking, likeliest = (
        jnp.moveaxis(part, 0, 1).reshape(B, P, *part.shape[3:]) for part in parts
    )
    return plain, jnp.moveaxis(thinking, 2, 1), likeliest


def answer_log_probs(
    loaded: Loaded,
    texts: Sequence[Sequence[str]],
    answers: Sequence[str],
    batch_size: int,
    seed: int,
) -> np.ndarray:
    """Log-probability of each answer, among all tokens, after each text and a space.

    A thinking model thinks at the last token before the one in which answers differ
    (data/problems/answer_tokens.py). Draws depend on the seed, the item and that token's position.

    Args:
      texts: P texts for each of N items. Texts of an item that each begin with the one before share
        one row.

    Returns:
      float64 [R, N, P, A]; R = 1 for a model that does not think.

    Raises:
      UserError: the tokenizer has no token of its own for each answer.
    """
    tokenizer = loaded.tokenizer
    found, answer = answer_tokens.encode(
        tokenizer, [text for item in texts for text in item], answers
    )
    encoded = iter(found)
    rows: list[Row] = []
    places: list[list[tuple[int, int]]] = []  # of each item's texts, (row, place among its reads)
    for number, item in enumerate(texts):
        contexts = [[*tokenizer.opening, *next(encoded), *answer.shared] for _ in item]
        places.append([])
        for context in reversed(contexts):  # the longest first
            if not places[-1] or rows[-1].tokens[: len(context)] != context:
                rows.append(Row(context, number=number))
            places[-1].append((len(rows) - 1, len(rows[-1].reads)))
            rows[-1].reads[len(context) - 1] = answer.own
        places[-1].reverse()
    best = [reading.best_RxPxA for reading in read(loaded, rows, batch_size, seed)]
    log_probs = [np.stack([best[row][:, p] for row, p in item], axis=1) for item in places]
    return np.stack(log_probs, axis=1).astype(np.float64)
