"""Documents of which only a part is predicted; the rest is read.

A token that is read but not predicted is stored as ~id, a negative number, so that rows are cut and kept
as those of any text. `split` takes the two apart again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from fqs_jax.data.sources.specification import Source
from fqs_jax.data.tokenizer import Tokenizer


@runtime_checkable
class MarkedSource(Source, Protocol):
    """A source that makes the tokens of its documents itself."""

    def tokens(self, index: int, tokenizer: Tokenizer) -> np.ndarray:
        """The ids of a document, int32 [tokens], ~id for those that are only read; a blank one has none.

        A BOS token is among them if the model wants one.
        """


@dataclasses.dataclass(frozen=True)
class Answers:
    """Problems of a built-in task: what follows the question is predicted, work and answer.

    Attributes:
      source: the documents.
      equals: symbol at the end of every question.
    """

    source: Source
    equals: str

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    @property
    def settings(self) -> str:
        return f"{self.source.settings} answers"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> str:
        return self.source[index]

    def place(self, index: int) -> str:
        return self.source.place(index)

    def tokens(self, index: int, tokenizer: Tokenizer) -> np.ndarray:
        """As `MarkedSource.tokens`; a question without an answer is read and nothing is predicted."""
        text = self.source[index]
        question = text.index(self.equals) + len(self.equals)
        ids, learned = tokenizer.encode_marked(text, [(question, len(text))])
        opening = list(tokenizer.opening)
        return stored([*opening, *ids], [False] * len(opening) + learned)


def stored(ids: Sequence[int], learned: Sequence[bool]) -> np.ndarray:
    """Token ids as they are stored, int32: ~id for those that are only read."""
    return np.where(learned, ids, np.invert(ids)).astype(np.int32)


def split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids, int32, of stored tokens, and True for those that are predicted."""
    return np.where(tokens < 0, ~tokens, tokens), tokens >= 0
