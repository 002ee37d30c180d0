"""GSM8K with chains of thought: several sampled chains for each question, and a vote on the number."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from fqs_jax.evaluation import statistics
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.evaluation.tasks import answers, gsm8k
from fqs_jax.evaluation.tasks.items import Item
from fqs_jax.inference import generation
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runtime.errors import UserError

PROMPT = (
    "You are a helpful assistant. Work the question out step by step, and end with "
    '"Therefore, the answer (arabic numerals) is" and the number.\n'
    "The question is: {question}\nAnswer: Let's think step by step."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the chains; the defaults are the published ones, except the number of votes.

    Attributes:
      votes: chains for each question.
      max_new_tokens: tokens of a chain at most.
      prompt: text around {question}.
      batch_size: chains generated together.
      seq_len: tokens that a prompt and its chain may have; None = the model's own limit.
    """

    votes: int = 8
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 1000
    prompt: str = PROMPT
    seed: int = 0
    batch_size: int = 32
    seq_len: int | None = None


class Chain(NamedTuple):
    """One sampled chain; `ended` is False if it was cut off at max_new_tokens."""

    text: str
    ended: bool

    def published(self) -> int:
        """The answer that the released evaluation reads.

        It cuts the text after " Question", and also reads the end-of-text mark.
        """
        text, stop, _ = self.text.partition(" Question")
        return answers.published_number(text + (stop or ("</s>" if self.ended else "")))


@dataclasses.dataclass(frozen=True)
class Row:
    """Scores of a vote among chains.

    Attributes:
      items, too_long: numbers of questions scored, and of questions left out because they do not fit.
      majority: share of questions whose most frequent number is right, with its Wilson interval. The
        first of equally frequent numbers counts; chains without a number do not vote.
      single: share of chains that are right.
      majority_published, single_published: the same with the released evaluation's parser.
      no_number: share of chains without a number.
      cut_off: share of chains that reached max_new_tokens.
    """

    stage: str
    model: str
    task: str
    votes: int
    items: int
    too_long: int
    majority: Interval
    single: float
    majority_published: float
    single_published: float
    no_number: float
    cut_off: float


def sample(
    loaded: Loaded,
    items: Sequence[Item],
    settings: Settings,
    progress: Callable[[int, int], None] = lambda done, total: None,
    write: Callable[[str], str] = str,
) -> dict[int, list[Chain]]:
    """Sampled chains by item number, for the items that leave room for all new tokens.

    Chains depend on the seed and on the questions that share a batch, so also on the batch size.

    Args:
      progress: called with (questions done, all questions).
      write: puts a prompt into the form that the model reads, such as a chat.

    Raises:
      UserError: the prompt has no place for the question, or no item fits.
    """
    if "{question}" not in settings.prompt:
        raise UserError("the prompt for chains of thought must have {question} in it")
    prompts = [write(settings.prompt.replace("{question}", gsm8k.question(item))) for item in items]
    lengths = [len(generation.prompt_ids(loaded, prompt)) for prompt in prompts]
    seq_len = settings.seq_len or loaded.model.max_seq_len
    fitting = [n for n, length in enumerate(lengths) if length + settings.max_new_tokens <= seq_len]
    if not fitting:
        raise UserError(
            f"no question fits in {seq_len} tokens with {settings.max_new_tokens} new ones, the shortest "
            f"has {min(lengths)}; set --max_new_tokens lower"
        )
    fitting.sort(key=lambda n: -lengths[n])  # prompts of a batch have similar lengths
    together = max(1, settings.batch_size // settings.votes)
    chains: dict[int, list[Chain]] = {}
    for start in range(0, len(fitting), together):
        chosen = fitting[start : start + together]
        filled = chosen + chosen[:1] * (together - len(chosen))
        results = generation.generate(
            loaded,
            [prompts[n] for n in filled for _ in range(settings.votes)],
            settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=_seed(settings.seed, start),
        )
        for i, n in enumerate(chosen):
            part = results[i * settings.votes : (i + 1) * settings.votes]
            chains[n] = [Chain(r.text, len(r.tokens) < settings.max_new_tokens) for r in part]
        progress(min(start + together, len(fitting)), len(fitting))
    return chains


def _seed(seed: int, start: int) -> int:
    """The seed of the batch that starts at a question; hashed, so that no two seeds share a batch's seed."""
    return int(np.random.SeedSequence([seed % 2**32, start]).generate_state(1)[0])


def count(
    items: Sequence[Item], chains: dict[int, list[Chain]], *, stage: str, model: str, task: str
) -> Row:
    """Score chains by both parsers; stage, model and task are copied into the row."""
    right = [gsm8k.number(items[n]) for n in chains]
    parsed = [[answers.final_number(chain.text) for chain in own] for own in chains.values()]
    published = [[chain.published() for chain in own] for own in chains.values()]
    votes = len(parsed[0])
    majority = float(np.mean([vote(own) == true for own, true in zip(parsed, right, strict=True)]))
    return Row(
        stage=stage,
        model=model,
        task=task,
        votes=votes,
        items=len(chains),
        too_long=len(items) - len(chains),
        majority=statistics.wilson(majority, len(right)),
        single=_single(parsed, right),
        majority_published=float(
            np.mean([vote(own) == true for own, true in zip(published, right, strict=True)])
        ),
        single_published=_single(published, right),
        no_number=float(np.mean([number is None for own in parsed for number in own])),
        cut_off=float(np.mean([not chain.ended for own in chains.values() for chain in own])),
    )


def vote(numbers: Sequence[Hashable | None]) -> Hashable | None:
    """The most frequent number, the first of several equally frequent ones; None without any number."""
    counted = collections.Counter(number for number in numbers if number is not None)
    return counted.most_common(1)[0][0] if counted else None


def _single(numbers: Sequence[Sequence[Hashable | None]], right: Sequence[Hashable]) -> float:
    return float(
        np.mean([[n == true for n in own] for own, true in zip(numbers, right, strict=True)])
    )
