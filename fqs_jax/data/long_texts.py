"""Token ids of long texts, computed piece by piece.

A tokenizer takes about 60 bytes of memory for every token, so a document of 200 MB would take many
gigabytes. Tokens do not depend on text far away. So a text is cut at a space between two words, if the
tokenizer gives the text around that space the same ids in two pieces as in one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.runtime.errors import UserError

LONG = 1 << 22  # characters; a shorter text is tokenized at once
PIECE = 1 << 20  # characters
MOST_AT_ONCE = 1 << 24  # characters of a text that cannot be cut; about 1 GB of memory
_AROUND = 2000  # characters on both sides of a cut that are compared
_TRIES = 100  # spaces that are tried for a cut


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text, as by `tokenizer.encode`, but int32 [tokens] and without its memory.

    Raises:
      UserError: the text is very long, and the tokenizer depends on where it is cut.
    """
    pieces = (np.array(tokenizer.encode(piece), np.int32) for piece in _pieces(tokenizer, text))
    return np.concatenate([np.zeros(0, np.int32), *pieces])


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, as by `encode`; of short texts, many at once."""
    found: list[np.ndarray] = []
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > LONG:
            found += _encode_short(tokenizer, batch)
            batch, size = [], 0
        if len(text) > LONG:
            found.append(encode(tokenizer, text))
        else:
            batch.append(text)
            size += len(text)
    return found + _encode_short(tokenizer, batch)


def _encode_short(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    return [np.array(ids, np.int32) for ids in tokenizer.encode_batch(texts)]


def _pieces(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    start = 0
    if len(text) > LONG:
        while len(text) - start > 2 * PIECE:
            cut = _cut(tokenizer, text, start + PIECE)
            if cut is None:
                break
            yield text[start : cut[0]]
            start = cut[1]
    if len(text) - start > MOST_AT_ONCE:
        raise UserError(
            f"a document has {len(text):,} characters, and this tokenizer cannot take it in pieces; "
            f"divide it into documents of up to {MOST_AT_ONCE:,}"
        )
    yield text[start:]


def _cut(tokenizer: Tokenizer, text: str, first: int) -> tuple[int, int] | None:
    """The end of a piece and the start of the next, at or after `first`; None if there is no such."""
    for space in itertools.islice(_spaces(text, first), _TRIES):
        # A tokenizer keeps the space with the next word, or adds one to the start of every text.
        for end, start in ((space, space), (space, space + 1), (space + 1, space + 1)):
            before, after = text[max(space - _AROUND, 0) : end], text[start : space + _AROUND]
            whole = text[max(space - _AROUND, 0) : space + _AROUND]
            if tokenizer.encode(before) + tokenizer.encode(after) == tokenizer.encode(whole):
                return end, start
    return None


def _spaces(text: str, first: int) -> Iterator[int]:
    """Places of single spaces and line breaks between letters or digits."""
    last = min(first + PIECE, len(text)) - 1
    for place in range(max(first, 1), last):
        if text[place] in " \n" and text[place - 1].isalnum() and text[place + 1].isalnum():
            yield place
