"""Likelihoods of the texts of options, each as the continuation of its question.

The text is cut into tokens, and its likelihood is divided, as the lm-evaluation-harness 0.4.13 does both
(`lm_eval.api.task.ConfigurableTask.process_results`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.evaluation.tasks import asking, questions
from fqs_jax.evaluation.tasks.asking import Settings
from fqs_jax.evaluation.tasks.decisions import Decisions
from fqs_jax.evaluation.tasks.items import Cloze
from fqs_jax.evaluation.tasks.questions import Question
from fqs_jax.inference import continuations
from fqs_jax.inference.loaded import Loaded
from fqs_jax.inference.readings import Advance


class Likelihoods(NamedTuple):
    """A decision an item between its options, by three scores of their texts. Of options that are
    alike, the first counts.

    total: log-likelihood of the text in nats, the harness's `acc`. by_characters: the same divided by the
    number of characters (code points) of the option, the harness's `acc_norm`; the blank between prompt
    and option is not counted. by_tokens: divided by the number of tokens.
    """

    total: Decisions
    by_characters: Decisions
    by_tokens: Decisions


class Evaluation(NamedTuple):
    """Likelihoods without thoughts, and after thoughts (None for a model that does not think).

    answered: numbers of the items that were scored, from 0. too_long: how many were left out because
    they do not fit.
    """

    plain: Likelihoods
    thinking: Likelihoods | None
    answered: list[int]
    too_long: int


def evaluate(
    loaded: Loaded,
    items: Sequence[Cloze],
    settings: Settings,
    progress: Advance = lambda done, total: None,
) -> Evaluation:
    """Score the options of all items by their texts. Thoughts are drawn as in `asking.evaluate`.

    Args:
      progress: called with the number of rows done and of all rows.

    Raises:
      UserError: no item fits, an option has no token of its own, or a score is not finite.
    """
    every = [_question(item, number, loaded.tokenizer) for number, item in enumerate(items)]
    found = asking.answer(loaded, every, settings, progress)
    characters = [[len(option) for option in items[n].options] for n in found.answered]
    tokens = [[len(path) for path in every[n].choices] for n in found.answered]

    def likelihoods(answers: asking.Answers) -> Likelihoods:
        total = answers.choices
        return Likelihoods(total, _divided(total, characters), _divided(total, tokens))

    return Evaluation(
        likelihoods(found.plain),
        likelihoods(found.thinking) if found.thinking is not None else None,
        found.answered,
        found.too_long,
    )


def _question(item: Cloze, number: int, tokenizer: Tokenizer) -> Question:
    """The rows of an item, and the steps along the tokens of each option."""
    requests = [
        continuations.encode(tokenizer, item.prompt, item.delimiter + option)
        for option in item.options
    ]
    sequences = [request.context + request.continuation for request in requests]
    paths = [
        questions.path(tokens, len(request.context))
        for tokens, request in zip(sequences, requests, strict=True)
    ]
    rows, paths = questions.share_rows(sequences, paths, number)
    return Question(rows, [], paths, item.right)


def _divided(decisions: Decisions, lengths: Sequence[Sequence[int]]) -> Decisions:
    """The same decisions with the log-probability of each option divided by its length."""
    lengths_NxA = np.ones((len(lengths), decisions.log_probs_NxRxDxA.shape[-1]))
    for n, own in enumerate(lengths):
        lengths_NxA[n, : len(own)] = own
    divided = decisions.log_probs_NxRxDxA / lengths_NxA[:, None, None, :]
    return dataclasses.replace(decisions, log_probs_NxRxDxA=divided)
