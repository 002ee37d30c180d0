"""The two tokenizer libraries behind one interface: SentencePiece, and Hugging Face's tokenizers.

Both find the added tokens in a text first, with the code of the tokenizers library, and encode what is
between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import sentencepiece
import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import decoders

from fqs_jax.data import token_spans
from fqs_jax.data.added_tokens import Listed
from fqs_jax.data.token_spans import Spans

_SPACE = "\u2581"  # SentencePiece's sign for a space


class Backend(Protocol):
    """The functions that a tokenizer library must provide. They never add special tokens.

    Attributes:
      vocab_size: one more than the largest id.
      trained_size: the same for the trained vocabulary, without added tokens.
      appended: added tokens that no file gives an id, behind all others.
    """

    vocab_size: int
    trained_size: int
    appended: frozenset[str]

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def spans(self, text: str) -> Spans:
        """The ids of a text, as by `encode`, and where each token is in it."""

    def decode(self, ids: list[int]) -> str: ...

    def id_of(self, piece: str) -> int | None: ...

    def piece_of(self, token_id: int) -> str: ...

    def own_id(self, kind: str) -> int | None:
        """The id of the bos, eos or pad token in the library's own file, or None."""

    def adds_bos(self) -> bool:
        """True if texts start with BOS unless tokenizer_config.json sets add_bos_token."""


class SentencePiece:
    """A tokenizer.model with added tokens.

    Args:
      content: the file's bytes.
      listed: the added tokens.
      plain_specials: True = the spelling of a special token in a text is plain text.
      legacy: True = the text behind an added token starts with a space of its own, as every text does.
      clean_up: True = remove spaces in front of punctuation when decoding.
    """

    def __init__(
        self,
        content: bytes,
        listed: Sequence[Listed],
        plain_specials: bool,
        legacy: bool,
        clean_up: bool,
    ):
        if not content:
            raise ValueError("the file is empty")  # the library would wait for another one
        self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        if not self._model.get_piece_size():
            raise ValueError("it has no pieces")
        self._pieces = [self._model.id_to_piece(i) for i in range(self._model.get_piece_size())]
        proto = ModelProto.FromString(content)
        prefixes = proto.normalizer_spec.add_dummy_prefix
        self._unprefixed = None  # encodes text behind an added token, without a space in front
        if prefixes and not legacy:
            proto.normalizer_spec.add_dummy_prefix = False
            self._unprefixed = sentencepiece.SentencePieceProcessor(
                model_proto=proto.SerializeToString()
            )
        # Clean-up was made for WordPiece, and damages the text of BPE.
        self._clean_up = clean_up and proto.trainer_spec.model_type != proto.trainer_spec.BPE
        self._add(listed, plain_specials)
        self._decoder = _sentencepiece_decoder(prefixes)
        self.trained_size = len(self._pieces)
        self.vocab_size = max([self.trained_size, *(i + 1 for i in self._added.values())])

    def _add(self, listed: Sequence[Listed], plain_specials: bool) -> None:
        known = {piece: i for i, piece in enumerate(self._pieces)}
        tokens = {token.content: token for token, _ in listed}
        for i, piece in enumerate(self._pieces):
            if self._model.is_control(i) or self._model.is_unknown(i):
                tokens.setdefault(piece, tokenizers.AddedToken(piece, special=True))
        self._added: dict[str, int] = {}
        following = max([len(known), *(i + 1 for _, i in listed if i is not None)])
        given = {token.content: i for token, i in listed if i is not None}
        appended = []
        for content in tokens:
            token_id = given.get(content, known.get(content))
            if token_id is None:
                token_id, following = following, following + 1
                appended.append(content)
            self._added[content] = token_id
        self.appended = frozenset(appended)
        self._special = {self._added[t.content] for t in tokens.values() if t.special}
        self._contents = {i: content for content, i in self._added.items()}
        sought = [t for t in tokens.values() if not (plain_specials and t.special)]
        self._finder = _finder(sought)
        self._found = {i: self._added[c] for c, i in self._finder.get_vocab().items()}
        self._any = _any_of([token.content for token in sought])

    def encode(self, text: str) -> list[int]:
        if self._any is None or not self._any.search(text):
            return self._encode_part(text, True)
        ids = []
        for part, first in self._parts(text):
            ids += [part] if isinstance(part, int) else self._encode_part(part, first)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        found = None if self._any is None else self._any.search
        if self._unprefixed is None and not (found and any(map(found, texts))):
            return self._model.encode(texts)
        return [self.encode(text) for text in texts]

    def spans(self, text: str) -> Spans:
        found, end = Spans([], []), 0
        for part, first in self._parts(text):
            # An added token may take the spaces around it, which then stand between the parts.
            begin = text.index(self._contents[part] if isinstance(part, int) else part, end)
            if isinstance(part, int):
                end = begin + len(self._contents[part])
                found.ids.append(part)
                found.spans.append((begin, end))
            else:
                end = begin + len(part)
                own = token_spans.of_sentencepiece(self._model_for(part, first), part)
                found.ids.extend(own.ids)
                found.spans.extend((begin + start, begin + stop) for start, stop in own.spans)
        return found

    def _parts(self, text: str) -> Iterator[tuple[str | int, bool]]:
        """Added tokens as ids, and the text between them; True at the beginning of the text."""
        end = 0
        found = self._finder.encode(text, add_special_tokens=False)
        for (start, stop), token in zip(found.offsets, found.ids, strict=True):
            if start > end:
                yield text[end:start], end == 0
            yield self._found[token], False
            end = stop
        if end < len(text):
            yield text[end:], end == 0

    def _encode_part(self, text: str, first: bool) -> list[int]:
        return self._model_for(text, first).encode(text)

    def _model_for(self, text: str, first: bool) -> Any:
        if self._unprefixed is not None and not (first and text[:1] not in (" ", _SPACE)):
            return self._unprefixed
        return self._model

    def decode(self, ids: list[int]) -> str:
        pieces = (self.piece_of(i) for i in ids if i not in self._special)
        text = self._decoder.decode([piece for piece in pieces if piece])
        return _cleaned(text) if self._clean_up else text

    def id_of(self, piece: str) -> int | None:
        if piece in self._added:
            return self._added[piece]
        token_id = self._model.piece_to_id(piece)  # of an unknown piece: the unknown token's
        return token_id if self._pieces[token_id] == piece else None

    def piece_of(self, token_id: int) -> str:
        if token_id in self._contents:
            return self._contents[token_id]
        return self._pieces[token_id] if token_id < len(self._pieces) else ""

    def own_id(self, kind: str) -> int | None:
        ids = {
            "bos": self._model.bos_id(),
            "eos": self._model.eos_id(),
            "pad": self._model.pad_id(),
        }
        return ids[kind] if ids[kind] >= 0 else None

    def adds_bos(self) -> bool:
        return True  # the Llama convention


def _finder(tokens: Sequence[tokenizers.AddedToken]) -> tokenizers.Tokenizer:
    """A tokenizer without a vocabulary, whose only tokens are the added ones."""
    finder = tokenizers.Tokenizer(tokenizers.models.BPE())
    finder.add_tokens(list(tokens))
    return finder


def _any_of(contents: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds most quickly whether a text has any of these tokens."""
    parts = [re.escape(content) for content in contents if content]
    return re.compile("|".join(parts)) if parts else None


def _sentencepiece_decoder(strips: bool) -> Any:
    """Pieces to text: signs for spaces, bytes, and without the first space of the text."""
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)


class Fast:
    """A tokenizer of Hugging Face's tokenizers library with added tokens.

    Arguments are those of `SentencePiece`.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        listed: Sequence[Listed],
        plain_specials: bool,
        clean_up: bool,
    ):
        tokenizer.no_truncation()  # a tokenizer.json may contain either
        tokenizer.no_padding()
        trained = tokenizer.get_vocab(with_added_tokens=False)
        self._tokenizer = tokenizer
        self.trained_size = max(trained.values(), default=-1) + 1
        self.appended = frozenset(
            token.content
            for token, index in listed
            if index is None and tokenizer.token_to_id(token.content) is None
        )
        known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
        has = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        new = [
            token
            for token, index in listed
            if repr(token) not in known and (index is not None or token.content not in has)
        ]
        tokenizer.add_tokens(new)
        tokenizer.encode_special_tokens = plain_specials
        # Clean-up was made for WordPiece, and damages the text of BPE.
        bpe = isinstance(tokenizer.model, tokenizers.models.BPE)
        self._clean_up = clean_up and not bpe
        self.vocab_size = max(tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def spans(self, text: str) -> Spans:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Spans(encoding.ids, encoding.offsets)

    def decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids)
        return _cleaned(text) if self._clean_up else text

    def id_of(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    def piece_of(self, token_id: int) -> str:
        return self._tokenizer.id_to_token(token_id) or ""

    def own_id(self, kind: str) -> int | None:
        return None

    def adds_bos(self) -> bool:
        """True if the file's post-processor adds a token in front."""
        plain, full = self.encode("a"), self._tokenizer.encode("a").ids
        return len(full) > len(plain) and full[0] != plain[0]


def _cleaned(text: str) -> str:
    """Text without the spaces in front of punctuation and English contractions."""
    for end in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(end, end.strip())
    return text
