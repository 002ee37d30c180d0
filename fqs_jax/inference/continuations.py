"""Log-probabilities of texts behind contexts, cut into tokens as the lm-evaluation-harness cuts them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.inference import readings
from fqs_jax.inference.loaded import Loaded
from fqs_jax.inference.readings import Advance
from fqs_jax.runtime.errors import UserError, printable


class Request(NamedTuple):
    """A continuation to score. Token ids; the context has at least one."""

    context: list[int]
    continuation: list[int]


class Score(NamedTuple):
    """The score of a continuation: its log-probability in nats, and True if each token was the likeliest."""

    log_prob: float
    greedy: bool


def encode(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Token ids of a text that is cut in two.

    The whole text is encoded and then cut where the context alone would end, since its parts alone may
    be written in other tokens. Spaces at the end of the context go with the continuation, because
    tokenizers join them to the next word. This is the harness's own rule, so that scores compare. An
    empty context becomes the BOS token, or the end-of-text token.

    The whole may have no more tokens than the context, if the two are joined in one token. It is then
    cut in front of the first token that the context alone does not have.

    Raises:
      UserError: the continuation has no token of its own, or the context is empty and the tokenizer has
        neither BOS nor end-of-text token.
    """
    if not context:
        first, ids = first_id(tokenizer), tokenizer.encode(continuation)
        if ids[:1] == [first] and len(ids) > 1:
            return Request(ids[:1], ids[1:])  # the continuation itself begins with that token
        before, whole = [first], [first, *ids]
    else:
        before = tokenizer.with_opening(context.rstrip())
        whole = tokenizer.with_opening(context + continuation)
    if not before:
        before = [first_id(tokenizer)]
        whole = before + whole
    cut = len(before)
    if len(whole) <= cut and continuation:
        pairs = zip(before, whole, strict=False)
        cut = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if not cut:
            starts = _starts(tokenizer)
            if starts is None:
                raise UserError(
                    f"the continuation {printable(continuation, 60)!r} joins all of its context in one "
                    "token, and the tokenizer has no BOS or end-of-text token to begin with"
                )
            cut, whole = 1, [starts, *whole]
        before = whole[:cut]
    if continuation and len(whole) <= cut:
        raise UserError(
            f"the continuation {printable(continuation, 60)!r} has no token of its own behind its "
            "context, so it has no score; the tokenizer drops it"
        )
    return Request(before, whole[cut:])


def first_id(tokenizer: Tokenizer) -> int:
    """The id that stands before a text without a context.

    Raises:
      UserError: the tokenizer has neither BOS nor end-of-text token.
    """
    token = _starts(tokenizer)
    if token is None:
        raise UserError("an empty context needs a tokenizer with a BOS or end-of-text token")
    return token


def _starts(tokenizer: Tokenizer) -> int | None:
    return tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id


def score(
    loaded: Loaded,
    requests: Sequence[Request],
    batch_size: int = 8,
    seed: int = 0,
    progress: Advance = lambda done, total: None,
) -> tuple[list[Score], int]:
    """Score continuations; thoughts depend on the seed, the number of the request and the position.

    A text longer than the model was made for loses tokens at its beginning.

    Returns:
      A Score a request, in order, and how many requests lost tokens.

    Raises:
      UserError: a continuation alone is too long, or a log-probability is not finite.
    """
    longest = loaded.model.max_seq_len
    rows: dict[int, readings.Row] = {}  # by number of the request; an empty continuation has none
    for number, (context, continuation) in enumerate(requests):
        if len(continuation) > longest:
            raise UserError(
                f"a continuation of {len(continuation)} tokens is longer than the "
                f"{longest} that the model was made for; score a long text by windows"
            )
        tokens = (context + continuation)[-(longest + 1) :]
        if continuation:
            rows[number] = readings.Row(tokens[:-1], number=number)
            first = len(tokens) - len(continuation) - 1
            for position, token in enumerate(continuation, start=first):
                rows[number].reads[position] = (token,)
    cropped = sum(len(r.context) + len(r.continuation) > longest + 1 for r in requests)
    scores = [Score(0.0, True)] * len(requests)
    found = readings.read(loaded, list(rows.values()), batch_size, seed, progress) if rows else []
    readings.check_finite(loaded, found, list(rows))
    for number, reading in zip(rows, found, strict=True):
        log_prob_P = _mean_log_probs(reading.best_RxPxA)[:, 0]
        right = np.array(requests[number].continuation)
        greedy = bool((reading.likeliest_P == right).all())
        scores[number] = Score(float(log_prob_P.sum()), greedy)
    return scores, cropped


def _mean_log_probs(log_probs_Rx: np.ndarray) -> np.ndarray:
    """The log of the probability averaged over thoughts."""
    return logsumexp(log_probs_Rx, axis=0) - np.log(len(log_probs_Rx))
