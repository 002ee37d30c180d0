"""A continuation that is watched, as HTML: each token is a card with its thought, weight and gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fqs_jax.inference import live
from fqs_jax.inference.live import LiveToken
from fqs_jax.reporting.markup import escape
from fqs_jax.reporting.sections import colour, signed

FULL = 1.0  # nats: a gain with the full colour, fixed, so that colours stay while tokens come
LEGEND = (
    '<p class="soft">Each card is a token, dashed if it is one of the prompt. On it: the thought before it; '
    "its probability p, the weight w of the thought in it, and the nats by which the thought made it "
    'likelier (<b class="p3">helped</b>, <b class="n3">hurt</b>).</p>'
)


class Column(NamedTuple):
    """A model's name and its continuation so far.

    Until there is one, `waits` says what it waits for. milliseconds: of a token, where the continuation is
    too short to tell.
    """

    label: str
    tokens: Sequence[LiveToken]
    waits: str = ""
    milliseconds: float = math.nan


def continuation(prompt: str, column: Column) -> str:
    """The text of one model, its numbers, and its tokens with the thoughts before them."""
    new = [token for token in column.tokens if not token.is_given]
    cards = f'<div class="cards">{"".join(map(_card, column.tokens))}</div>'
    return (
        f'<section class="live"><h3>{escape(column.label)}</h3>{_facts(column)}'
        f'<p class="text"><span class="soft">{_lines(prompt)}</span>{_text(new)}</p>'
        f"{cards}</section>"
    )


def side_by_side(prompt: str, columns: Sequence[Column]) -> str:
    """The texts of several models, next to each other where there is room."""
    return f'<div class="beside">{"".join(continuation(prompt, c) for c in columns)}</div>'


def note(text: str) -> str:
    """A line about something that went wrong."""
    return f'<p class="warn" role="alert">{escape(text)}</p>'


def _text(tokens: Sequence[LiveToken]) -> str:
    return "".join(
        f'<span class="{colour(token.gain, FULL)}">{_lines(token.text)}</span>' for token in tokens
    )


def _card(token: LiveToken) -> str:
    word = '<b class="soft">end of text</b>' if token.is_end else f"<b>{_marked(token.text)}</b>"
    css = f"card {'given' if token.is_given else ''} {colour(token.gain, FULL)}"
    numbers = [f"p {token.probability:.2f}"]
    thought = ""
    if token.thought is not None:
        thought = f"<i>{_marked(token.thought)}</i>"
        numbers += [f"w {token.weight:.2f}", f"<em>{signed(token.gain, 2)}</em>"]
    return f'<div class="{css}">{word}{thought}<span>{" ".join(numbers)}</span></div>'


def _facts(column: Column) -> str:
    if not any(not token.is_given for token in column.tokens):
        return f'<p class="soft" role="status">{escape(column.waits)}</p>'
    summary = live.summary(column.tokens)
    parts = [f"{summary.tokens} token{'s' if summary.tokens != 1 else ''}"]
    milliseconds = column.milliseconds
    if not math.isfinite(milliseconds):
        milliseconds = summary.ms_per_token
    if math.isfinite(milliseconds):
        parts.append(f"<b>{milliseconds:.3g} ms/token</b>")
    if math.isfinite(summary.weight):
        parts += [f"weight {summary.weight:.2f}", f"gain {signed(summary.gain)} nats/token"]
    joined = " \u00b7 ".join(parts)
    return f'<p class="soft">{joined}</p>'


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _marked(text: str) -> str:
    """Text in which blanks and line breaks can be seen at its ends; a dot for empty text."""
    shown = escape(text).replace("\n", "\u21b5")
    inner = shown.strip(" ")
    if not inner:
        return "\u2423" * len(shown) or "\u00b7"
    return shown
