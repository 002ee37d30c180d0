"""A continuation as it is watched: each token with the thought before it, its weight and its gain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fqs_jax.data.problems import answer_tokens
from fqs_jax.inference.generation import Emitted, prompt_ids, stream
from fqs_jax.inference.growing_text import GrowingText
from fqs_jax.inference.loaded import Loaded


class LiveToken(NamedTuple):
    """A token of a continuation, or of the end of its prompt.

    Attributes:
      text: what it adds to the text; "" for a part of a character that is not complete.
      thought: text of the thought before it; None for a model that does not think.
      weight: mixing weight of the thought.
      probability: of this token, after the thought if there is one.
      gain: nats by which the thought made this token likelier.
      seconds: time since the token before.
      is_given: it is one of the prompt's.
      is_end: it ends the text and is no part of it.
    """

    text: str
    thought: str | None
    weight: float
    probability: float
    gain: float
    seconds: float
    is_given: bool = False
    is_end: bool = False


class Summary(NamedTuple):
    """A continuation, without its prompt, in numbers; NaN for what there is none of.

    Attributes:
      ms_per_token: median, without the first token, which waits for the prompt and the compiler.
      weight, gain: means over the tokens.
    """

    tokens: int
    ms_per_token: float
    weight: float
    gain: float


def continue_prompt(
    loaded: Loaded,
    prompt: str,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    again: int = 0,
) -> Iterator[LiveToken]:
    """The tokens of `generation.generate` for one prompt, each as soon as it is made.

    Args:
      again: number of the prompt's last tokens that come ahead of them, each with a thought too.

    Raises:
      UserError: the prompt is empty or an argument is out of range.
    """
    ids = prompt_ids(loaded, prompt)
    cut = max(1, len(ids) - again)
    growing, shown = GrowingText(loaded.tokenizer, ids[:cut]), loaded.tokenizer.decode(ids[:cut])
    steps = stream(
        loaded, ids, max_new_tokens, temperature=temperature, seed=seed, again=len(ids) - cut
    )
    for number, emitted in enumerate(steps, start=cut):
        token, text = int(emitted.token_B[0]), shown
        if token >= 0 and not (whole := growing.append(token)).endswith("\ufffd"):
            text = whole
        yield _token(loaded, emitted, text[len(shown) :], is_given=number < len(ids))
        shown = text


def answer(
    loaded: Loaded, problem: str, answers: Sequence[str], seed: int = 0
) -> Iterator[LiveToken]:
    """The likeliest of some answers behind a problem and a space, as evaluation compares them: one token.

    Its probability is among the answers, and so is its gain.

    Raises:
      UserError: the tokenizer has no token of its own for each answer.
    """
    tokenizer = loaded.tokenizer
    [context], found = answer_tokens.encode(tokenizer, [problem.rstrip()], answers)
    ids = [*tokenizer.opening, *context, *found.shared]
    for emitted in stream(loaded, ids, 1, seed=seed, only=found.own):
        place = list(found.own).index(int(emitted.token_B[0]))
        yield _token(loaded, emitted, f" {answers[place]}")


def _token(loaded: Loaded, emitted: Emitted, text: str, is_given: bool = False) -> LiveToken:
    drawn = emitted.thought_BxK[0].tolist()
    assert emitted.log_prob_B is not None and emitted.gain_B is not None
    return LiveToken(
        text=text,
        thought=loaded.thought_text(drawn) if drawn else None,
        weight=float(emitted.weight_B[0]),
        probability=math.exp(float(emitted.log_prob_B[0])),
        gain=float(emitted.gain_B[0]),
        seconds=emitted.seconds,
        is_given=is_given,
        is_end=int(emitted.token_B[0]) < 0,
    )


def summary(tokens: Sequence[LiveToken]) -> Summary:
    """The numbers of a continuation."""
    new = [token for token in tokens if not token.is_given]
    timed = [token.seconds for token in tokens[1:] if not token.is_given]
    thinking = [token for token in new if token.thought is not None]
    return Summary(
        sum(not token.is_end for token in new),
        1e3 * _middle(timed),
        _mean([token.weight for token in thinking]),
        _mean([token.gain for token in thinking]),
    )


def _middle(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
