"""Tokenizers: text to token ids and back, as the files of a Hugging Face folder describe it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from fqs_jax.data import added_tokens, tokenizer_files
from fqs_jax.data.tokenizer_backends import Backend
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.notes import note

Ids = TypeVar("Ids", list[int], np.ndarray)

_MANY_UNKNOWN = 0.2  # of a text's characters


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A converter between text and token ids.

    Attributes:
      bos_id: the id of the beginning-of-text token; None if it does not exist.
      eos_id: the id of the end-of-text token that ends a training document; None if it does not exist.
      pad_id: the id of the padding token, else of the end token, else 0.
      add_bos: True if texts should start with bos_id; `encode` leaves that to the caller.
      other_ends: ids besides eos_id that end a text when it is generated.
      rows: rows of the model's embedding table, beyond which there is no id; None = not known yet.
    """

    backend: Backend
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    add_bos: bool
    other_ends: frozenset[int] = frozenset()
    rows: int | None = None

    @property
    def opening(self) -> list[int]:
        """The ids in front of every text: the BOS id, or nothing."""
        return [self.bos_id] if self.add_bos and self.bos_id is not None else []

    @property
    def end_ids(self) -> frozenset[int]:
        """All ids that end a text when it is generated."""
        return self.other_ends | ({self.eos_id} if self.eos_id is not None else set())

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's vocabulary may be padded beyond it."""
        named = [i for i in (self.bos_id, *self.end_ids) if i is not None]
        return max([self.backend.vocab_size, *(i + 1 for i in named)])

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS or EOS. Lone surrogates, which are not valid text, become '?'.

        Raises:
          UserError: the library cannot encode the text, or the model has no row for one of its tokens.
        """
        return self._in_table(self.backend.encode(_clean(text)))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, as by `encode`, computed in several threads."""
        rows = self.backend.encode_batch([_clean(text) for text in texts])
        return [self._in_table(ids) for ids in rows]

    def encode_marked(
        self, text: str, marks: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a text, as by `encode`, and True for each token that is in a marked part of it.

        A token that is only partly in one counts too, as in transformers.

        Args:
          marks: start and end of each part in characters, in order, none inside another.
        """
        found = self.backend.spans(_clean(text))
        starts, ends = np.array(found.spans, np.int64).reshape(-1, 2).T
        begins, stops = np.array(marks, np.int64).reshape(-1, 2).T
        # The first part that ends behind the start of the token is the only one that it can be in.
        part = np.searchsorted(stops, starts, side="right")
        begin = np.append(begins, np.iinfo(np.int64).max)[part]
        return self._in_table(found.ids), (ends > begin).tolist()

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; special tokens and ids outside the vocabulary are left out.

        Raises:
          UserError: the library cannot decode them.
        """
        size = self.backend.vocab_size
        return self.backend.decode([int(i) for i in ids if 0 <= i < size])

    def note_unknown(self, texts: Sequence[str]) -> None:
        """A note if this vocabulary lacks many characters of some texts: the model cannot read them."""
        text = "\n".join(texts[:100])[:100_000]
        # Without blanks, which tokenizers may write otherwise.
        written = Counter("".join(text.split()))
        lacking = written - Counter(self.decode(self.encode(text)))
        share = lacking.total() / max(1, written.total())
        if share > _MANY_UNKNOWN:
            note(
                f"the tokenizer does not know {share:.0%} of these characters, such as "
                f"{printable(max(lacking, key=lambda character: lacking[character]))!r}: the model was made "
                "for another kind of text"
            )

    def id_of(self, piece: str) -> int | None:
        """The id of a vocabulary entry by its spelling in the vocabulary; None if it does not exist."""
        return self.backend.id_of(piece)

    def piece_of(self, token_id: int) -> str:
        """The spelling of an id in the vocabulary; "" if there is no such id."""
        return self.backend.piece_of(token_id) if 0 <= token_id < self.vocab_size else ""

    def with_opening(self, text: str) -> list[int]:
        """Token ids of a whole text: the opening and the text, which may begin with the BOS token itself.

        Chat templates write that token. No model was trained on texts that begin with two of them.
        """
        return [*self.opening, *self.after_opening(self.encode(text))]

    def after_opening(self, ids: Ids) -> Ids:
        """The ids of a text without the opening, which the text itself may begin with (`with_opening`)."""
        size = len(self.opening)
        return ids[size:] if size and list(ids[:size]) == self.opening else ids

    def for_table(self, rows: int, folder: str | Path) -> Tokenizer:
        """This tokenizer for a model whose embedding table has so many rows.

        Added tokens may lie beyond the table as long as no text has them; `encode` refuses them then.

        Args:
          folder: where model and tokenizer are from, for errors.

        Raises:
          UserError: the trained vocabulary, the BOS token or an end token lies beyond the table.
        """
        place, last = inputs.name(folder), f"the model's embedding table ends at id {rows - 1}"
        if self.backend.trained_size > rows:
            raise UserError(
                f"{place}: the tokenizer has {self.backend.trained_size} tokens, but {last}; "
                "use the tokenizer that belongs to this model"
            )
        named = [("beginning-of-text", self.bos_id), *(("end", i) for i in sorted(self.end_ids))]
        for kind, token_id in named:
            if token_id is not None and not 0 <= token_id < rows:
                raise UserError(
                    f"{place}: the {kind} token has id {token_id}, but {last}; correct config.json, "
                    "generation_config.json and the tokenizer's files, or use the tokenizer that "
                    "belongs to this model"
                )
        if self.backend.vocab_size > rows:
            note(
                f"{place}: the tokenizer has added tokens up to id {self.backend.vocab_size - 1}, "
                f"but {last}; a text with one of those tokens will be refused",
                once=f"beyond {self.backend.vocab_size} {rows}",
            )
        pad_id = self.pad_id if self.pad_id < rows else (self.eos_id or 0)
        return dataclasses.replace(self, rows=rows, pad_id=pad_id)

    def _in_table(self, ids: list[int]) -> list[int]:
        if self.rows is None or not ids or (largest := max(ids)) < self.rows:
            return ids
        raise UserError(
            f"the text has the token {printable(self.backend.piece_of(largest), 60)!r} of id "
            f"{largest}, but the model's embedding table ends at id {self.rows - 1}; use the "
            "tokenizer that belongs to this model, or a text without that token"
        )


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    The first of these that can be read is used: tokenizer.json, tokenizer.model (SentencePiece),
    vocab.json + merges.txt (Qwen2 only). The other files of tokenizers, generation_config.json and
    config.json name the special tokens and further tokens; each file may be absent. The spelling of an
    added token in a text is that token, as in transformers; in a tokenizer that fqs_jax trained, the
    spelling of a special token is plain text.

    Raises:
      UserError: no tokenizer is found, or a file is damaged.
    """
    folder = Path(folder)
    settings = added_tokens.settings_of(folder)
    model_config = inputs.read_optional_json(folder / "config.json")
    backend = tokenizer_files.read_backend(folder, settings, model_config)

    ids = {
        kind: _special_id(kind, settings, model_config, backend, folder)
        for kind in ("bos", "eos", "pad")
    }
    bos_id, eos_id, pad_id = ids["bos"], ids["eos"], ids["pad"]
    ends = set(_ids(model_config, "eos", folder / "config.json"))
    generation = folder / "generation_config.json"
    ends.update(_ids(inputs.read_optional_json(generation), "eos", generation))
    add_bos = settings.get("add_bos_token")
    return Tokenizer(
        backend=backend,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=next((i for i in (pad_id, eos_id) if i is not None), 0),
        add_bos=bos_id is not None and (backend.adds_bos() if add_bos is None else bool(add_bos)),
        other_ends=frozenset(ends - {eos_id}),
    )


def _special_id(
    kind: str, settings: Mapping, model_config: Mapping, backend: Backend, folder: Path
) -> int | None:
    """The id of a special token: by its spelling, else from config.json, else from the library's file.

    A spelling of null means that the token does not exist.
    """
    if (key := f"{kind}_token") in settings:
        spelling = added_tokens.spelling(settings[key])
        if spelling is None:
            return None
        token_id = backend.id_of(spelling)
        if token_id is not None and (
            spelling not in backend.appended or token_id < _rows(model_config)
        ):
            return token_id
    named = _ids(model_config, kind, folder / "config.json")
    # Several tokens may end a text; the first is the main one.
    return named[0] if named else backend.own_id(kind)


def _rows(model_config: Mapping) -> int:
    """The vocabulary in config.json: a token that no file gives an id exists if the model has its row."""
    size = model_config.get("vocab_size")
    return size if isinstance(size, int) else 0


def _ids(config: Mapping, kind: str, path: Path) -> list[int]:
    """The ids that a config names for a kind of token: an id, a list of them, or none.

    Raises:
      UserError: one is no id. -1 as the id of the padding token means that there is none.
    """
    value = config.get(f"{kind}_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        whole = isinstance(token_id, int) and not isinstance(token_id, bool)
        if kind == "pad" and whole and token_id < 0:
            return []
        if not whole or token_id < 0:
            raise UserError(
                f"{inputs.name(path)}: {kind}_token_id is {printable(repr(value), 60)}, and ids are "
                "whole numbers from 0; correct the file"
            )
    return ids
