"""Log-probabilities of the answers to a task's questions under a loaded model.

A thinking model thinks only where something is read, several thoughts behind one text pass. Rows of
like length share a batch, and lengths are rounded up, so that few shapes are compiled.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fqs_jax.data.rows import windows
from fqs_jax.evaluation.tasks.decisions import Decisions
from fqs_jax.evaluation.tasks.items import Item
from fqs_jax.evaluation.tasks.questions import Question, Row, Step, prepare
from fqs_jax.inference.loaded import Loaded
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import keys as keys_lib
from fqs_jax.thinking import prediction
from fqs_jax.thinking.config import ThoughtConfig

Advance = Callable[[int, int], None]
_FEW = 32  # rows


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is asked.

    Attributes:
      thought_seeds: sampled thoughts that are averaged.
      greedy: the likeliest thought in place of sampled ones.
      seed: of the samples.
      batch_size: rows in a batch, fewer where a row thinks at many places.
      seq_len: tokens an item may have; None = what the model was made for.
    """

    thought_seeds: int = 4
    greedy: bool = False
    seed: int = 0
    batch_size: int = 32
    seq_len: int | None = None


class Answers(NamedTuple):
    """What a model made of a task's items, too long ones left out (`too_long` of them).

    published: the walk along the true answer over allowed ids; choices: which of them it is. For
    numbers both are the walk, for choices of text both the choices.
    """

    published: Decisions
    choices: Decisions


class Evaluation(NamedTuple):
    """`plain` is the prediction without a thought; `thinking` with one, None if the model has none."""

    plain: Answers
    thinking: Answers | None
    items: int
    too_long: int


def evaluate(
    loaded: Loaded,
    items: Sequence[Item],
    settings: Settings,
    progress: Advance = lambda done, total: None,
) -> Evaluation:
    """Ask a model all items.

    Thoughts depend on the seed, the item and the place alone, not on batches. So the choices of an
    item are compared under common random numbers, and adding one moves no other's score.

    Args:
      progress: told (rows done, rows in all).

    Raises:
      UserError: no item fits, or the tokenizer cannot write the answers.
    """
    seq_len = settings.seq_len or loaded.model.max_seq_len
    asked = prepare(items, loaded.tokenizer)
    questions = [question for question in asked if question.length <= seq_len]
    if not questions:
        shortest = min(question.length for question in asked)
        raise UserError(
            f"no item fits in {seq_len} tokens, the shortest has {shortest}; set --seq_len higher"
        )
    thought = _thought(loaded, settings)
    rows = [row for question in questions for row in question.rows]
    # Numbered by item, so that leaving one out changes no other's thoughts.
    owners = [
        number
        for number, question in enumerate(asked)
        if question.length <= seq_len
        for _ in question.rows
    ]
    plain, thinking = _read(loaded, thought, rows, owners, settings, progress)
    first = np.cumsum([0, *(len(question.rows) for question in questions)])
    return Evaluation(
        _answers(questions, first, rows, plain),
        _answers(questions, first, rows, thinking) if thought is not None else None,
        len(questions),
        len(asked) - len(questions),
    )


def _thought(loaded: Loaded, settings: Settings) -> ThoughtConfig | None:
    """The model's thoughts, as many at each place as are averaged."""
    if loaded.thought is None:
        return None
    if settings.greedy:
        return dataclasses.replace(loaded.thought, rationales=1, temperature=0.0)
    return dataclasses.replace(loaded.thought, rationales=settings.thought_seeds)


@functools.partial(jax.jit, static_argnames=("model", "thought"))
def _log_probs(
    params: Params,
    batch: dict[str, jax.Array],
    key: jax.Array,
    model: ModelConfig,
    thought: ThoughtConfig | None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the wanted ids, without thoughts [B, P, A] and with [B, P, R, A]."""
    tokens, mask = batch["tokens"], batch["mask"]
    index_BxP, ids_BxPxA = batch["index"], batch["ids"]
    keys_BxPxR = None
    if thought is not None:
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["owner"])
        row_keys = functools.partial(keys_lib.thought_keys, rationales=thought.rationales)
        keys_BxPxR = jax.vmap(lambda k, index: row_keys(k, index[None])[0])(keys_B, index_BxP)
    plain, mixed = prediction.predict_at(
        params, tokens, index_BxP, keys_BxPxR, model, thought, mask
    )
    plain = jnp.take_along_axis(plain, ids_BxPxA, axis=-1)
    if mixed is None:
        return plain, jnp.zeros((*ids_BxPxA.shape[:2], 0, ids_BxPxA.shape[2]))
    return plain, jnp.take_along_axis(mixed, ids_BxPxA[:, :, None], axis=-1)


def _read(
    loaded: Loaded,
    thought: ThoughtConfig | None,
    rows: Sequence[Row],
    owners: Sequence[int],
    settings: Settings,
    progress: Advance,
) -> tuple[np.ndarray, np.ndarray]:
    """What every row wants to know: log-probabilities [rows, 1, P, A] and [rows, R, P, A]."""
    seeds = thought.rationales if thought is not None else 0
    P = max(len(row.reads) for row in rows)
    A = max(len(ids) for row in rows for ids in row.reads.values())
    plain_NxPxA = np.full((len(rows), P, A), -np.inf)
    thinking_NxPxRxA = np.full((len(rows), P, seeds, A), -np.inf)
    key, done = jax.random.key(settings.seed), 0
    for chosen, batch in _batches(rows, owners, settings.batch_size, max(1, seeds), A):
        where = {
            name: jax.device_put(value, sharding.rows(value.shape, loaded.mesh))
            for name, value in batch.items()
        }
        with jax.set_mesh(loaded.mesh):
            plain, thinking = _log_probs(loaded.params, where, key, loaded.model, thought)
        places = batch["index"].shape[1]
        width = min(places, P)
        plain_NxPxA[chosen, :width] = np.asarray(plain)[: len(chosen), :width]
        thinking_NxPxRxA[chosen, :width] = np.asarray(thinking)[: len(chosen), :width]
        done += len(chosen)
        progress(done, len(rows))
    return plain_NxPxA[:, None], np.moveaxis(thinking_NxPxRxA, 2, 1)


def _batches(
    rows: Sequence[Row],
    owners: Sequence[int],
    batch_size: int,
    seeds: int,
    num_ids: int,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Rows of like size, by their numbers; the last batch of a size is filled up with empty rows."""
    for places, length, members in _groups(rows):
        # Where one row thinks a lot, few go together.
        count = max(1, batch_size * 16 // max(16, places * seeds))
        for start in range(0, len(members), count):
            chosen = np.array(members[start : start + count])
            tokens = [np.array(rows[n].tokens, np.int32) for n in chosen]
            batch = windows.pad_rows(tokens + [tokens[0][:1]] * (count - len(chosen)), length, 0)
            index_BxP = np.zeros((count, places), np.int32)
            ids_BxPxA = np.zeros((count, places, num_ids), np.int32)
            owner_B = np.zeros(count, np.int32)
            for b, n in enumerate(chosen):
                owner_B[b] = owners[n]
                for p, (position, ids) in enumerate(rows[n].reads.items()):
                    index_BxP[b, p] = position
                    ids_BxPxA[b, p, : len(ids)] = ids
            yield chosen, batch | {"index": index_BxP, "ids": ids_BxPxA, "owner": owner_B}


def _groups(rows: Sequence[Row]) -> list[tuple[int, int, list[int]]]:
    """Rows by the shape that they are computed in: (places, length, their numbers), longest first.

    Every shape is another compiled program, so there are few: a power of two or whatever is the most.
    """
    most_places = max(len(row.reads) for row in rows)
    groups: dict[tuple[int, int], list[int]] = {}
    for n, row in enumerate(rows):
        places = min(_power_of_two(len(row.reads), 4), most_places)
        groups.setdefault((places, _power_of_two(len(row.tokens), 64)), []).append(n)
    sized: list[tuple[int, int, list[int]]] = []
    small: list[int] = []
    sizes = sorted(groups)
    for size, following in zip(sizes, [*sizes[1:], (0, 0)], strict=True):
        members = small + groups[size]
        if len(members) < _FEW and following[0] == size[0]:
            small = members  # not worth a program: computed with the next longer ones
            continue
        small = []
        longest = max(len(rows[n].tokens) for n in members)
        sized.append((size[0], -(-longest // 32) * 32, members))
    return sized[::-1]


def _power_of_two(size: int, least: int) -> int:
    return max(least, 1 << (size - 1).bit_length())


def _answers(
    questions: Sequence[Question], first: np.ndarray, rows: Sequence[Row], read: np.ndarray
) -> Answers:
    """Gather each question's steps from what its rows read, [rows, R, P, A]."""
    places = [{position: p for p, position in enumerate(row.reads)} for row in rows]

    def look_up(question: int, step: Step) -> np.ndarray:
        """[R, ids of the step]."""
        n = first[question] + step.row
        known = rows[n].reads[step.position]
        return read[n, :, places[n][step.position], [known.index(i) for i in step.ids]].T

    walks = [
        ([look_up(q, step) for step in question.walk], [step.target for step in question.walk])
        for q, question in enumerate(questions)
    ]
    chosen = []
    for q, question in enumerate(questions):
        totals = [sum(look_up(q, step)[:, 0] for step in path) for path in question.choices]
        chosen.append(([np.stack(totals, axis=-1)] if totals else [], [question.right]))
    published = Decisions.of(walks if questions[0].walk else chosen)
    return Answers(published, Decisions.of(chosen) if questions[0].choices else published)
