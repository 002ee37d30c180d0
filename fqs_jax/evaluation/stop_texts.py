"""Texts that end a generated text: ordinary text, special tokens, and both together."""

from __future__ import annotations

from collections.abc import Sequence

from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.inference.generation import Emitted
from fqs_jax.inference.growing_text import GrowingText


class AllStopped(Exception):
    """Raised to end a generation in which every text has stopped."""


class StopTexts:
    """B growing texts, each cut before the first of the stop texts.

    A special token has no text, so "<|im_end|>" never stands in the text that is decoded. So stop texts
    are sought in that text and in the one with special tokens spelled out.

    Attributes:
      texts: the texts so far, without special tokens and without what follows a stop text.
    """

    def __init__(self, tokenizer: Tokenizer, until: Sequence[str], rows: int):
        self._tokenizer = tokenizer
        self._until = [stop for stop in until if stop]
        self._growing = [GrowingText(tokenizer) for _ in range(rows)]
        # The special tokens of each row: their places in the text and their spellings.
        self._specials: list[list[tuple[int, str]]] = [[] for _ in range(rows)]
        self._stopped = [False] * rows
        self._spellings: dict[int, str] = {}  # of special tokens; "" for others
        self.texts = [""] * rows

    def step(self, emitted: Emitted) -> None:
        """Take one token of each text.

        Raises:
          AllStopped: no text is growing any more.
        """
        for i, token in enumerate(emitted.token_B.tolist()):
            if self._stopped[i]:
                continue
            if token < 0:
                self._stopped[i] = True
                continue
            self._append(i, token)
        if all(self._stopped):
            raise AllStopped

    def _append(self, i: int, token: int) -> None:
        text = self._growing[i].append(token)
        if spelling := self._spelling(token):
            self._specials[i].append((len(text), spelling))
        ends = [text.index(stop) for stop in self._until if stop in text]
        if self._specials[i]:
            spelled = _with_specials(text, self._specials[i])
            ends += [
                _place(spelled.index(stop), self._specials[i])
                for stop in self._until
                if stop in spelled
            ]
        self._stopped[i] = bool(ends)
        self.texts[i] = text[: min(ends, default=None)]

    def _spelling(self, token: int) -> str:
        """The spelling of a special token; "" of any other."""
        if token not in self._spellings:
            # Twice, since a decoder may drop a space at the beginning of a text.
            is_special = not self._tokenizer.decode([token, token])
            self._spellings[token] = self._tokenizer.piece_of(token) if is_special else ""
        return self._spellings[token]


def _with_specials(text: str, specials: Sequence[tuple[int, str]]) -> str:
    """The text with special tokens spelled out at their places."""
    parts, start = [], 0
    for place, spelling in specials:
        parts += [text[start:place], spelling]
        start = place
    return "".join([*parts, text[start:]])


def _place(spelled_place: int, specials: Sequence[tuple[int, str]]) -> int:
    """The place in the text of a place in the text with special tokens spelled out."""
    shift = 0
    for place, spelling in specials:
        if spelled_place <= place + shift:
            break
        shift += min(len(spelling), spelled_place - place - shift)
    return spelled_place - shift
