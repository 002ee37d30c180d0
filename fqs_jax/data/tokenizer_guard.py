"""A tokenizer library that a file may make fail, crash or fill the memory, behind a guard."""

from __future__ import annotations

from pathlib import Path

from fqs_jax.data import tokenizer_library as library
from fqs_jax.data.token_spans import Spans
from fqs_jax.data.tokenizer_backends import Backend
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError


class Guarded:
    """A backend whose errors are one line, and which makes no more tokens than a text can have."""

    def __init__(self, backend: Backend, path: Path):
        self._backend, self._shown = backend, inputs.name(path)
        self.vocab_size = backend.vocab_size
        self.trained_size = backend.trained_size
        self.appended = backend.appended

    def encode(self, text: str) -> list[int]:
        with library.errors(f"{self._shown} cannot encode a text"):
            ids = self._backend.encode(text)
        library.check_length(len(ids), text, self._shown)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        with library.errors(f"{self._shown} cannot encode a text"):
            rows = self._backend.encode_batch(texts)
        for ids, text in zip(rows, texts, strict=True):
            library.check_length(len(ids), text, self._shown)
        return rows

    def spans(self, text: str) -> Spans:
        with library.errors(f"{self._shown} cannot encode a text"):
            found = self._backend.spans(text)
        library.check_length(len(found.ids), text, self._shown)
        return found

    def decode(self, ids: list[int]) -> str:
        with library.errors(f"{self._shown} cannot decode tokens"):
            return self._backend.decode(ids)

    def id_of(self, piece: str) -> int | None:
        with library.errors(f"{self._shown} cannot look up a token"):
            return self._backend.id_of(piece)

    def piece_of(self, token_id: int) -> str:
        with library.errors(f"{self._shown} cannot look up a token"):
            return self._backend.piece_of(token_id)

    def own_id(self, kind: str) -> int | None:
        return self._backend.own_id(kind)

    def adds_bos(self) -> bool:
        with library.errors(f"{self._shown} cannot encode a text"):
            return self._backend.adds_bos()


def probe(backend: Guarded) -> None:
    """Try a tokenizer on varied text and tokens, so that one that crashes its library is refused early.

    An unknown token that is missing is not held against it: no text may need it.

    Raises:
      UserError: the library crashed, or the text grew without bound.
    """
    ids = list(range(min(backend.vocab_size, 1 << 20)))
    for attempt in (lambda: backend.encode(library.PROBE), lambda: backend.decode(ids)):
        try:
            attempt()
        except UserError as error:
            if isinstance(error.__cause__, Exception):
                continue
            raise
