"""A text that grows token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fqs_jax.data.tokenizer import Tokenizer

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of one byte in SentencePiece vocabularies


class GrowingText:
    """The text of growing token ids. Only the last ones are decoded again, so long texts stay cheap."""

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._text = ""  # of all ids but the new ones
        # Ids whose text is known, which a decoder may need before the next ones, and new ones.
        self._known: list[int] = []
        self._new: list[int] = []
        self._added = 0  # characters of the new ids
        for token in ids:
            self.append(token)

    def append(self, token: int) -> str:
        """The text with one more token; it ends in U+FFFD where a character is not complete."""
        self._new.append(token)
        before = self._tokenizer.decode(self._known)
        added = self._tokenizer.decode(self._known + self._new)[len(before) :]
        text = self._text + added
        # Each of a run of bytes may still become U+FFFD, and special tokens do not end the run.
        is_settled = len(added) > self._added and not _BYTE.fullmatch(
            self._tokenizer.piece_of(token)
        )
        self._added = len(added)
        if is_settled and not added.endswith("\ufffd"):
            self._added = 0
            self._text, self._known, self._new = text, self._new, []
        return text
