"""Answers of a loaded model to the questions of a task.

A thinking model thinks only where a log-probability is read (inference/readings.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fqs_jax.evaluation.tasks.decisions import Decisions
from fqs_jax.evaluation.tasks.items import Item
from fqs_jax.evaluation.tasks.questions import Question, Step, prepare
from fqs_jax.inference import readings
from fqs_jax.inference.loaded import Loaded
from fqs_jax.inference.readings import Advance
from fqs_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of an evaluation.

    Attributes:
      thought_seeds: sampled thoughts that are averaged.
      greedy: the likeliest thought instead of sampled ones.
      seed: of the samples.
      batch_size: rows in a batch.
      seq_len: the longest item in tokens; None = the length that the model was made for.
    """

    thought_seeds: int = 4
    greedy: bool = False
    seed: int = 0
    batch_size: int = 32
    seq_len: int | None = None


class Answers(NamedTuple):
    """A model's decisions on the items of a task.

    published: the steps of the walk along the true answer, each between the allowed ids. choices: one
    decision an item, between its choices. For numbers both are the walk, for choices of text both are
    the choices.
    """

    published: Decisions
    choices: Decisions


class Evaluation(NamedTuple):
    """Answers without thoughts (`plain`) and after thoughts (`thinking`, None if the model has none).

    answered: numbers of the items that were answered, from 0. too_long: how many were left out because
    they do not fit.
    """

    plain: Answers
    thinking: Answers | None
    answered: list[int]
    too_long: int


def evaluate(
    loaded: Loaded,
    items: Sequence[Item],
    settings: Settings,
    progress: Advance = lambda done, total: None,
) -> Evaluation:
    """Put all items to a model.

    Thoughts depend on the seed, the item and the position alone, not on batches. So the choices of an
    item are compared under common random numbers, and another choice changes no other's score.

    Args:
      progress: called with the number of rows done and of all rows.

    Raises:
      UserError: no item fits, the tokenizer cannot write the answers, or a score is not finite.
    """
    return answer(loaded, prepare(items, loaded.tokenizer), settings, progress)


def answer(
    loaded: Loaded,
    every: Sequence[Question],
    settings: Settings,
    progress: Advance = lambda done, total: None,
) -> Evaluation:
    """Put questions to a model, which has its tokens already; see `evaluate`."""
    seq_len = settings.seq_len or loaded.model.max_seq_len
    answered = [n for n, question in enumerate(every) if question.length <= seq_len]
    questions = [every[n] for n in answered]
    if not questions:
        shortest = min(question.length for question in every)
        raise UserError(
            f"no item fits in {seq_len} tokens, the shortest has {shortest}; set --seq_len higher"
        )
    if settings.greedy:
        loaded = loaded.with_thought(rationales=1, temperature=0.0)
    else:
        loaded = loaded.with_thought(rationales=settings.thought_seeds)
    rows = [row for question in questions for row in question.rows]
    found = readings.read(loaded, rows, settings.batch_size, settings.seed, progress)
    readings.check_finite(loaded, found, [row.number for row in rows])
    plain = [reading.plain_PxA[None] for reading in found]
    thinking = [reading.thinking_RxPxA for reading in found]
    return Evaluation(
        _answers(questions, plain),
        _answers(questions, thinking) if loaded.thought is not None else None,
        answered,
        len(every) - len(answered),
    )


def _answers(questions: Sequence[Question], log_probs: Sequence[np.ndarray]) -> Answers:
    """Gather the steps of each question from the log-probabilities [R, P, A] of every row."""
    walks, choices = [], []
    first = 0  # row of the question
    for question in questions:
        by_row = log_probs[first : first + len(question.rows)]
        first += len(question.rows)
        walk = [_look_up(question, by_row, step) for step in question.walk]
        walks.append((walk, [step.target for step in question.walk]))
        totals_CxR = [
            np.sum([_look_up(question, by_row, step)[:, 0] for step in path], axis=0)
            for path in question.choices
        ]
        choices.append(([np.stack(totals_CxR, axis=-1)] if totals_CxR else [], [question.right]))
    published = Decisions.of(walks if questions[0].walk else choices)
    return Answers(published, Decisions.of(choices) if questions[0].choices else published)


def _look_up(question: Question, by_row: Sequence[np.ndarray], step: Step) -> np.ndarray:
    """Log-probabilities [R, A] of the ids of a step."""
    reads = question.rows[step.row].reads
    ids = reads[step.position]
    columns = [ids.index(i) for i in step.ids]
    return by_row[step.row][:, list(reads).index(step.position), columns]
