"""Documents of which only a part is predicted; the rest is read.

A token that is read but not predicted is stored as ~id, a negative number, so that rows are cut and kept
as those of any text. `split` takes the two apart again.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fqs_jax.data.sources.specification import Source
from fqs_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class MarkedSource(abc.ABC):
    """A `Source` made of another one, which makes the tokens of its documents itself.

    Attributes:
      source: the documents of the other one.
    """

    source: Source

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    @property
    @abc.abstractmethod
    def settings(self) -> str: ...

    def __len__(self) -> int:
        return len(self.source)

    @abc.abstractmethod
    def __getitem__(self, index: int) -> str: ...

    def place(self, index: int) -> str:
        return self.source.place(index)

    @abc.abstractmethod
    def tokens(self, index: int, tokenizer: Tokenizer) -> np.ndarray:
        """The ids of a document, int32 [tokens], ~id for those that are only read; a blank one has none.

        A BOS token is among them if the model wants one.
        """


@dataclasses.dataclass(frozen=True)
class Answers(MarkedSource):
    """Problems of a built-in task: what follows the question is predicted, work and answer.

    Attributes:
      equals: symbol at the end of every question.
    """

    equals: str

    @property
    def settings(self) -> str:
        return f"{self.source.settings} answers"

    def __getitem__(self, index: int) -> str:
        return self.source[index]

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
