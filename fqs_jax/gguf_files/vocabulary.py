"""The tokens of a GGUF file: their spellings, their kinds, and the ids with a meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gguf import TokenType

from fqs_jax.huggingface.fields import integer, shown, text
from fqs_jax.runtime.errors import UserError, printable

_KEY = "tokenizer.ggml."
# Ids with a meaning: our names, and those of the metadata.
_NAMED = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}
_NO_ID = 2**32 - 1  # -1, as some converters wrote it for a token that does not exist
# Ids in SentencePiece vocabularies whose files name none.
_LLAMA_IDS = {"unk": 0, "bos": 1, "eos": 2}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A list of tokens.

    Attributes:
      model: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
      tokens: spellings by id.
      kinds: by id, values of the library's TokenType.
      ids: bos, eos, eot, eom, unk and pad; those that do not exist are missing.
    """

    model: str
    tokens: list[str]
    kinds: list[int]
    ids: Mapping[str, int]

    @property
    def end_ids(self) -> list[int]:
        """The ids that end a text, the main one first."""
        return list(dict.fromkeys(self.ids[k] for k in ("eos", "eot", "eom") if k in self.ids))

    def spelling(self, name: str) -> str | None:
        """The spelling of a named token."""
        return self.tokens[self.ids[name]] if name in self.ids else None

    def of_kind(self, *kinds: TokenType) -> Iterator[tuple[int, str]]:
        """Ids and spellings of the tokens of these kinds, without empty spellings, which no text has."""
        for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)):
            if kind in kinds and token:
                yield i, token

    def table(self) -> dict[str, int]:
        """Ids by spelling. Tokens that are marked as unused fill up the table of a model, and are left out.

        Raises:
          UserError: two tokens have one spelling.
        """
        used = [kind for kind in TokenType if kind != TokenType.UNUSED]
        ids: dict[str, int] = {}
        for i, token in self.of_kind(*used):
            if token in ids:
                raise UserError(
                    f"{_KEY}tokens has {printable(repr(token), 60)} twice, with ids {ids[token]} and {i}"
                )
            ids[token] = i
        return ids


def read(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a file.

    Raises:
      UserError: a list is missing or has other types or lengths, or an id is beyond the tokens. The
        message has no file.
    """
    model = text(metadata, f"{_KEY}model")
    if model not in ("gpt2", "llama"):
        raise UserError(
            f"{_KEY}model {shown(model)} is none of gpt2, llama, the ones that are read"
        )
    tokens = texts(metadata, "tokens")
    kinds = _kinds(metadata, len(tokens))
    ids = dict(_LLAMA_IDS) if model == "llama" else {}
    ids = {name: i for name, i in ids.items() if i < len(tokens)}
    for name, key in _NAMED.items():
        token_id = integer(metadata, _KEY + key, _NO_ID, least=0, most=_NO_ID)
        if token_id == _NO_ID:
            continue
        if token_id >= len(tokens):
            raise UserError(
                f"{_KEY}{key} is {token_id}, but the last of the tokens has id {len(tokens) - 1}"
            )
        ids[name] = token_id
    # Files without kinds name their special tokens at least.
    for token_id in ids.values():
        if f"{_KEY}token_type" not in metadata or kinds[token_id] == TokenType.UNUSED:
            kinds[token_id] = TokenType.CONTROL
    return Vocabulary(model, tokens, kinds, ids)


def texts(metadata: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts of the tokenizer.

    Raises:
      UserError: it is missing, empty, or something else.
    """
    value = metadata.get(_KEY + name)
    if value is None:
        raise UserError(f"{_KEY}{name} is missing; the file has no whole tokenizer")
    if not isinstance(value, list) or not value:
        raise UserError(f"{_KEY}{name} should be a list of texts, found {_shown(value)}")
    return value


def numbers(metadata: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    """A list of as many numbers as there are tokens.

    Raises:
      UserError: it is missing, has another length, or is something else.
    """
    value = metadata.get(_KEY + name)
    if value is None:
        raise UserError(f"{_KEY}{name} is missing; the file has no whole tokenizer")
    if not isinstance(value, np.ndarray) or value.dtype == bool:
        raise UserError(f"{_KEY}{name} should be a list of numbers, found {_shown(value)}")
    if len(value) != count:
        raise UserError(f"{_KEY}{name} has {len(value)} entries, but there are {count} tokens")
    return value


def _kinds(metadata: Mapping[str, Any], count: int) -> list[int]:
    if f"{_KEY}token_type" not in metadata:
        return [TokenType.NORMAL] * count
    kinds = numbers(metadata, "token_type", count)
    known = {0, *TokenType}  # 0 = not stated
    if unknown := set(kinds.tolist()) - known:
        raise UserError(f"{_KEY}token_type has {min(unknown)}, which is no kind of token")
    return [int(kind) or int(TokenType.NORMAL) for kind in kinds]


def _shown(value: Any) -> str:
    if isinstance(value, list | np.ndarray):
        return f"a list of {len(value)} {'texts' if isinstance(value, list) else value.dtype.name}"
    return shown(value)
