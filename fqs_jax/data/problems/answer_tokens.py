"""The tokens of a task's answers in a tokenizer that was not made for the task."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.runtime.errors import UserError, printable


class AnswerTokens(NamedTuple):
    """The tokens of " ANSWER" behind a text.

    shared: ids that all answers begin with, such as the space of a tokenizer that keeps figures apart.
    own: one more id for each answer, no two the same.
    """

    shared: tuple[int, ...]
    own: tuple[int, ...]


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], answers: Sequence[str]
) -> tuple[list[list[int]], AnswerTokens]:
    """The ids of texts, without an opening, and of the answers that may follow each after a space.

    A prediction renormalised over the answers is the same whether the shared ids are predicted or given, so
    they can be read as a part of the text. Answers of several ids of their own have no such short cut, and
    one of them may begin with another (1 and 12).

    Args:
      texts: at least one.

    Raises:
      UserError: an answer has several ids of its own, or two have the same, or a text's last token changes
        when an answer follows.
    """
    contexts = tokenizer.encode_batch(texts)
    rests = [
        _behind(contexts[0], ids, texts[0])
        for ids in tokenizer.encode_batch([f"{texts[0]} {answer}" for answer in answers])
    ]
    columns = zip(*(rest[:-1] for rest in rests), strict=False)
    shared = tuple(c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, columns))
    for answer, rest in zip(answers, rests, strict=True):
        if len(rest) != len(shared) + 1:
            raise _unusable(answer, f"{len(rest) - len(shared)} tokens")
    own = tuple(rest[-1] for rest in rests)
    if len(set(own)) < len(own):
        twice = next(i for i, token in enumerate(own) if token in own[:i])
        raise _unusable(answers[twice], "the token of another answer")
    # An answer stands for all here: what follows the space does not change what is before it.
    followed = tokenizer.encode_batch([f"{text} {answers[0]}" for text in texts])
    for text, context, ids in zip(texts, contexts, followed, strict=True):
        if _behind(context, ids, text) != (*shared, own[0]):
            raise _joined(text)
    return contexts, AnswerTokens(shared, own)


def _behind(context: Sequence[int], ids: Sequence[int], text: str) -> tuple[int, ...]:
    """The ids behind those of a text."""
    if list(ids[: len(context)]) != list(context):
        raise _joined(text)
    return tuple(ids[len(context) :])


def _joined(text: str) -> UserError:
    return UserError(
        f"this tokenizer joins the end of {printable(repr(text[-40:]), 60)} with the answer behind it; use "
        "another model or another data.source"
    )


def _unusable(answer: str, has: str) -> UserError:
    return UserError(
        f"the answer {answer!r} is {has} in this tokenizer, and each answer must be one token of its own; "
        "use data.source=stories, whose answers are words, or a model that is trained from scratch"
    )
