"""The places of tokens in their text."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sentencepiece.sentencepiece_pb2 import SentencePieceText  # type: ignore[attr-defined]


class Spans(NamedTuple):
    """Token ids, and the start and the end of each token in the text, in characters."""

    ids: list[int]
    spans: list[tuple[int, int]]


def of_sentencepiece(model: Any, text: str) -> Spans:
    """The tokens of a text by a SentencePiece model, which counts in bytes of UTF-8."""
    pieces = SentencePieceText.FromString(model.encode(text, out_type="serialized_proto")).pieces
    # The character that each byte is in, and the end of the text.
    sizes = [len(character.encode()) for character in text]
    places = [*np.repeat(np.arange(len(text)), sizes).tolist(), len(text)]
    spans: list[tuple[int, int]] = []
    for piece in reversed(pieces):
        if piece.begin < piece.end:
            span = places[piece.begin], places[piece.end - 1] + 1
        elif spans and spans[-1][0] == places[piece.begin]:
            span = spans[-1]  # all bytes of a character but the last, and the space before a text
        else:
            span = places[piece.begin], places[piece.begin]
        spans.append(span)
    return Spans([piece.id for piece in pieces], spans[::-1])
