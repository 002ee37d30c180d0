"""Held-out problems of a built-in task: what a model answers at once, and how sure it is of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from fqs_jax.data.problems.task import Task
from fqs_jax.evaluation.statistics import fit_temperature
from fqs_jax.inference import readings
from fqs_jax.inference.loaded import Loaded

BATCH = 256  # problems in an evaluation batch


class Answers(NamedTuple):
    """What a model says to N problems of one length, whose answers are A symbols each.

    log_probs_SxNxAxC: for each thought seed, of the C symbols that an answer consists of, given the
      prompt and the true symbols before, renormalised over them; float32. A thinking model thinks
      anew before each symbol.
    right_NxA: the true symbols.
    """

    log_probs_SxNxAxC: np.ndarray
    right_NxA: np.ndarray

    def correct_SxN(self) -> np.ndarray:
        """Whether each symbol of the answer is the likeliest."""
        return (self.log_probs_SxNxAxC.argmax(-1) == self.right_NxA).all(axis=-1)

    def nll_SxN(self, temperature: float = 1.0) -> np.ndarray:
        """-log p(right answer), with all logits divided by a temperature."""
        log_p = log_softmax(self.log_probs_SxNxAxC / temperature, axis=-1)
        right = self.right_NxA[None, ..., None]
        return -np.take_along_axis(log_p, right, -1)[..., 0].sum(axis=-1)


def read(loaded: Loaded, task: Task, split: str, seeds: Sequence[int]) -> list[Answers]:
    """A model's answers to all problems of a split, one entry for each length of the task.

    Args:
      seeds: of thoughts.
    """
    return [_read(loaded, task, task.problems(split, length), seeds) for length in task.lengths]


def _read(
    loaded: Loaded, task: Task, problems: Sequence[tuple[str, str]], seeds: Sequence[int]
) -> Answers:
    answers = [answer.split() for _, answer in problems]
    right_NxA = np.array([[task.answers.index(symbol) for symbol in answer] for answer in answers])

    def at_NxC(place: int, seed: int) -> np.ndarray:
        prompts = [
            " ".join([prompt, *answer[:place]])
            for (prompt, _), answer in zip(problems, answers, strict=True)
        ]
        return readings.answer_log_probs(loaded, prompts, task.answers, BATCH, seed)

    places = range(right_NxA.shape[1])
    scores = [np.stack([at_NxC(place, seed) for place in places], axis=1) for seed in seeds]
    return Answers(np.stack(scores), right_NxA)


def task_accuracy(
    loaded: Loaded, task: Task, seeds: int, split: str = "test"
) -> tuple[float, float, float]:
    """Accuracy of direct answers, its standard error over items, and their NLL; lengths weigh alike."""
    return accuracy(read(loaded, task, split, range(seeds)))


def accuracy(by_length: Sequence[Answers]) -> tuple[float, float, float]:
    """The same of answers that were read."""
    accuracies, variances, nlls = [], [], []
    for answers in by_length:
        correct_N = answers.correct_SxN().mean(axis=0)  # over seeds, one an item
        accuracies.append(correct_N.mean())
        variances.append(correct_N.var() / len(correct_N))
        nlls.append(answers.nll_SxN().mean())
    error = math.sqrt(sum(variances)) / len(variances)
    return float(np.mean(accuracies)), error, float(np.mean(nlls))


def nll_by_item(by_length: Sequence[Answers], temperature: float = 1.0) -> np.ndarray:
    """-log p(right answer) of every item, mean over thought seeds; lengths one after the other."""
    return np.concatenate([answers.nll_SxN(temperature).mean(axis=0) for answers in by_length])


def fit_to_answers(by_length: Sequence[Answers]) -> float:
    """The temperature that fits all symbols of these answers best, of the first thought seed."""
    symbols = [answers.log_probs_SxNxAxC[0] for answers in by_length]
    return fit_temperature(
        np.concatenate([part.reshape(-1, part.shape[-1]) for part in symbols]),
        np.concatenate([answers.right_NxA.reshape(-1) for answers in by_length]),
    )
