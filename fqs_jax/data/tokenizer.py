"""Tokenizers: SentencePiece and Hugging Face fast tokenizers behind one small interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

# Qwen2's pre-tokenizer, which splits text before byte-level BPE: contractions, words with one
# leading sign, single digits, signs, line breaks, spaces.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Backend(Protocol):
    """The functions that a tokenizer library must provide. They never add special tokens."""

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: list[int]) -> str: ...

    def id_of(self, piece: str) -> int | None: ...

    def own_id(self, kind: str) -> int | None:
        """The id of the bos, eos or pad token in the library's own file, or None."""

    def adds_bos(self) -> bool:
        """True if texts start with BOS unless tokenizer_config.json sets add_bos_token."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A converter between text and token ids.

    Attributes:
      bos_id: the id of the beginning-of-text token; None if it does not exist.
      eos_id: the id of the end-of-text token; None if it does not exist.
      pad_id: the id of the padding token, else of the end token, else 0.
      add_bos: True if texts should start with bos_id; `encode` leaves that to the caller.
    """

    backend: Backend
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    add_bos: bool

    @property
    def opening(self) -> list[int]:
        """The ids in front of every text: the BOS id, or nothing."""
        return [self.bos_id] if self.add_bos and self.bos_id is not None else []

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's vocabulary may be padded beyond it."""
        return self.backend.vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS or EOS. Lone surrogates, which are not valid text, become '?'."""
        return self.backend.encode(_clean(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, as by `encode`, computed in several threads."""
        return self.backend.encode_batch([_clean(text) for text in texts])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; special tokens and ids outside the vocabulary are left out."""
        return self.backend.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def id_of(self, piece: str) -> int | None:
        """The id of a vocabulary entry by its spelling in the vocabulary; None if it does not exist."""
        return self.backend.id_of(piece)


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    The first of these that exists is read: tokenizer.model (SentencePiece), tokenizer.json, vocab.json
    + merges.txt (Qwen2 only). tokenizer_config.json, special_tokens_map.json and config.json name
    the special tokens; each file may be absent. As in the models' own code, SentencePiece treats the
    spelling of a special token in a text as plain text; the other two treat it as the token.

    Raises:
      UserError: no tokenizer is found, or a file is damaged.
    """
    folder = Path(folder)
    settings = _optional_json(folder / "tokenizer_config.json")
    tokens = {**_optional_json(folder / "special_tokens_map.json"), **settings}
    model_config = _optional_json(folder / "config.json")
    backend = _load_backend(folder, settings, model_config)

    bos_id = _special_id("bos", tokens, model_config, backend)
    eos_id = _special_id("eos", tokens, model_config, backend)
    pad_id = _special_id("pad", tokens, model_config, backend)
    add_bos = settings.get("add_bos_token")
    return Tokenizer(
        backend=backend,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=next((i for i in (pad_id, eos_id) if i is not None), 0),
        add_bos=bos_id is not None and (backend.adds_bos() if add_bos is None else bool(add_bos)),
    )


def _load_backend(folder: Path, settings: Mapping, model_config: Mapping) -> Backend:
    if (path := folder / "tokenizer.model").is_file():
        return _SentencePiece(path, _added_tokens(folder, settings))
    if (path := folder / "tokenizer.json").is_file():
        try:
            return _Fast(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path} is not a tokenizer.json that can be read: {error}") from error
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        kind = settings.get("tokenizer_class") or model_config.get("model_type") or "unknown"
        if not str(kind).lower().startswith("qwen2"):
            raise UserError(
                f"{folder} has vocab.json and merges.txt of a {kind} tokenizer; only Qwen2's can be "
                "read from these files: save it with transformers as tokenizer.json"
            )
        return _Fast(_build_qwen2(folder, _added_tokens(folder, settings)))
    raise UserError(
        f"{folder} has no tokenizer: expected tokenizer.model, tokenizer.json, or Qwen2's "
        "vocab.json and merges.txt"
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return inputs.read_json(path) if path.exists() else {}


def _added_tokens(folder: Path, settings: Mapping) -> dict[str, int]:
    """Tokens beyond the trained vocabulary, with their ids, from the two files that may list them."""
    try:
        decoder = settings.get("added_tokens_decoder") or {}
        listed = {entry["content"]: int(i) for i, entry in decoder.items()}
        added = _optional_json(folder / "added_tokens.json").items()
        return listed | {str(content): int(i) for content, i in added}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: the list of added tokens is malformed ({error!r})") from error


def _special_id(kind: str, tokens: Mapping, model_config: Mapping, backend: Backend) -> int | None:
    """The id of a special token: by its spelling, else from config.json, else from the library's file.

    A spelling of null means that the token does not exist.
    """
    if (key := f"{kind}_token") in tokens:
        value = tokens[key]
        spelling = value.get("content") if isinstance(value, dict) else value
        if spelling is None:
            return None
        if (token_id := backend.id_of(str(spelling))) is not None:
            return token_id
    value = model_config.get(f"{kind}_token_id")
    if isinstance(value, list) and value:
        value = value[0]  # several tokens may end a text; the first is the main one
    if isinstance(value, int) and value >= 0:
        return value
    return backend.own_id(kind)


class _SentencePiece:
    def __init__(self, path: Path, added: Mapping[str, int]):
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} is not a SentencePiece model ({error})") from error
        self.added = added
        self.num_pieces = self.model.get_piece_size()
        self.vocab_size = max([self.num_pieces, *(i + 1 for i in added.values())])

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.model.encode(texts)

    def decode(self, ids: list[int]) -> str:
        return self.model.decode([i for i in ids if i < self.num_pieces])

    def id_of(self, piece: str) -> int | None:
        if piece in self.added:
            return self.added[piece]
        token_id = self.model.piece_to_id(piece)  # of an unknown piece: the unknown token's
        return token_id if self.model.id_to_piece(token_id) == piece else None

    def own_id(self, kind: str) -> int | None:
        ids = {"bos": self.model.bos_id(), "eos": self.model.eos_id(), "pad": self.model.pad_id()}
        return ids[kind] if ids[kind] >= 0 else None

    def adds_bos(self) -> bool:
        return True  # the Llama convention


class _Fast:
    def __init__(self, tokenizer: tokenizers.Tokenizer):
        tokenizer.no_truncation()  # a tokenizer.json may contain either
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.vocab_size = max(tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def id_of(self, piece: str) -> int | None:
        return self.tokenizer.token_to_id(piece)

    def own_id(self, kind: str) -> int | None:
        return None

    def adds_bos(self) -> bool:
        """True if the file's post-processor adds a token in front."""
        plain, full = self.encode("a"), self.tokenizer.encode("a").ids
        return len(full) > len(plain) and full[0] != plain[0]


def _build_qwen2(folder: Path, added: Mapping[str, int]) -> tokenizers.Tokenizer:
    """Qwen2's byte-level BPE from its two text files."""
    try:
        model = tokenizers.models.BPE.from_file(
            str(folder / "vocab.json"), str(folder / "merges.txt")
        )
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{folder}: vocab.json or merges.txt is damaged ({error})") from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    for content, token_id in sorted(added.items(), key=lambda item: item[1]):
        tokenizer.add_special_tokens([tokenizers.AddedToken(content, normalized=False)])
        if tokenizer.token_to_id(content) != token_id:
            raise UserError(
                f"{folder}: added token {content!r} should have id {token_id}, the vocabulary "
                f"gives it {tokenizer.token_to_id(content)}; vocab.json belongs to another model"
            )
    return tokenizer
