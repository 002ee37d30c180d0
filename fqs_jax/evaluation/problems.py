"""Direct answers to the held-out problems of a built-in task, and their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from fqs_jax.data.problems import answer_tokens
from fqs_jax.data.problems.task import Task
from fqs_jax.evaluation.statistics import fit_temperature
from fqs_jax.inference import readings
from fqs_jax.inference.loaded import Loaded

BATCH = 256  # problems in an evaluation batch


class Answers(NamedTuple):
    """Predictions of the answers to N problems of one length, A symbols each.

    log_probs_RxNxAxC: log-probabilities of the C symbols that answers consist of, given the prompt and
      the true symbols before, renormalised over the C; float64. A thinking model thinks R times before
      each symbol; R = 1 without thoughts.
    right_NxA: numbers of the true symbols.
    answering_RxN: probability, among all tokens, that the one behind the prompt is any of the C; NaN if
      the tokenizer puts further tokens between them.
    """

    log_probs_RxNxAxC: np.ndarray
    right_NxA: np.ndarray
    answering_RxN: np.ndarray

    def correct_RxN(self) -> np.ndarray:
        """True where each symbol of the answer is the likeliest; nothing is if any is NaN."""
        likeliest = self.log_probs_RxNxAxC.argmax(-1) == self.right_NxA
        return (likeliest & ~np.isnan(self.log_probs_RxNxAxC).any(axis=-1)).all(axis=-1)

    def nll_RxN(self, temperature: float = 1.0) -> np.ndarray:
        """-log p(right answer), with all logits divided by a temperature."""
        log_p = log_softmax(self.log_probs_RxNxAxC / temperature, axis=-1)
        right = self.right_NxA[None, ..., None]
        return -np.take_along_axis(log_p, right, -1)[..., 0].sum(axis=-1)


def read(
    loaded: Loaded,
    task: Task,
    split: str,
    thoughts: int = 1,
    seed: int = 0,
    batch_size: int = BATCH,
) -> list[Answers]:
    """Answers to all problems of a split, one entry for each length of the task.

    Args:
      thoughts: sampled before each symbol, if the model thinks.
      batch_size: problems read at once.
    """
    loaded = loaded.with_thought(rationales=thoughts)
    return [
        _read(loaded, task, task.problems(split, length), seed, batch_size)
        for length in task.lengths
    ]


def _read(
    loaded: Loaded, task: Task, items: Sequence[tuple[str, str]], seed: int, batch_size: int
) -> Answers:
    answers = [answer.split() for _, answer in items]
    right_NxA = np.array([[task.answers.index(symbol) for symbol in answer] for answer in answers])
    texts = [
        [" ".join([prompt, *answer[:place]]) for place in range(len(answer))]
        for (prompt, _), answer in zip(items, answers, strict=True)
    ]
    log_p = readings.answer_log_probs(loaded, texts, task.answers, batch_size, seed)
    _, tokens = answer_tokens.encode(loaded.tokenizer, texts[0][:1], task.answers)
    answering_RxN = np.exp(log_p[:, :, 0]).sum(axis=-1)
    if tokens.shared:  # they are read as a part of the prompt
        answering_RxN = np.full_like(answering_RxN, math.nan)
    return Answers(log_softmax(log_p, axis=-1), right_NxA, answering_RxN)


def task_accuracy(
    loaded: Loaded, task: Task, thoughts: int, split: str = "test"
) -> tuple[float, float, float]:
    """Accuracy of direct answers, its standard error over items, and their NLL; lengths weigh alike."""
    return accuracy(read(loaded, task, split, thoughts))


def accuracy(by_length: Sequence[Answers]) -> tuple[float, float, float]:
    """Accuracy, its standard error over items, and NLL of answers; lengths weigh alike."""
    accuracies, variances, nlls = [], [], []
    for answers in by_length:
        correct_N = answers.correct_RxN().mean(axis=0)  # over thoughts, one an item
        accuracies.append(correct_N.mean())
        variances.append(correct_N.var() / len(correct_N))
        nlls.append(answers.nll_RxN().mean())
    error = math.sqrt(sum(variances)) / len(variances)
    return float(np.mean(accuracies)), error, float(np.mean(nlls))


def answering(by_length: Sequence[Answers]) -> float:
    """Mean probability that an answer begins behind the prompt; lengths weigh alike."""
    return float(np.mean([answers.answering_RxN.mean() for answers in by_length]))


def nll_by_item(by_length: Sequence[Answers], temperature: float = 1.0) -> np.ndarray:
    """Mean -log p(right answer) over thoughts of every item; lengths one after the other."""
    return np.concatenate([answers.nll_RxN(temperature).mean(axis=0) for answers in by_length])


def fit_to_answers(by_length: Sequence[Answers]) -> float:
    """The temperature that fits all symbols of these answers best, after the first thought."""
    symbols = [answers.log_probs_RxNxAxC[0] for answers in by_length]
    return fit_temperature(
        np.concatenate([part.reshape(-1, part.shape[-1]) for part in symbols]),
        np.concatenate([answers.right_NxA.reshape(-1) for answers in by_length]),
    )
