"""Tokens of all documents, end to end: in memory if the text is small, else cached in files.

A store on disk is a folder of pieces, `tokens_000000.npy` and `lengths_000000.npy` for the first
documents and so on, and finally `ends.npy`. Each file appears complete or not at all, and every
process would write the same content into it. So a killed run resumes with the next piece, and two
runs can write the same store at once. Nothing is pickled.

Several processes begin with a share of the pieces each, and then make what is still missing, in random order.
So they need not know whether they see the same store, and nobody waits for a slow one. A store may lie in a
bucket (token_copies.py).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fqs_jax.data import cached_arrays, long_texts
from fqs_jax.data.marked_tokens import MarkedSource
from fqs_jax.data.rows import token_copies
from fqs_jax.data.sources.specification import Source, fingerprint
from fqs_jax.data.sources.text_files import is_blank, unreadable
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.files import replace_array
from fqs_jax.runtime.progress import Progress

IN_MEMORY = 1 << 24  # bytes; a smaller text is tokenized at every start
MIN_PIECE = 1024  # documents in a piece
MAX_PIECES = 10_000
_CHARACTERS = 1 << 22  # tokenized in one call
_Kind: TypeAlias = type[np.uint16] | type[np.int32]


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """The stream of tokens of all documents, with random access.

    Attributes:
      pieces: consecutive parts of the stream: arrays, or `.npy` files.
      starts: the start of each piece in the stream and the end of the last one, int64.
      ends: the end of each document in the stream, int64; an array or a `.npy` file.
    """

    pieces: tuple[np.ndarray | Path, ...]
    starts: np.ndarray
    ends: np.ndarray | Path

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop - 1, int32; fewer at the end of the stream."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = [np.zeros(0, np.int32)]
        for piece in range(first, len(self.pieces)):
            begin = int(self.starts[piece])
            if begin >= stop:
                break
            parts.append(_array(self.pieces[piece])[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts).astype(np.int32)

    def document(self, start: int, stop: int) -> np.ndarray:
        """The document numbers of tokens start to stop - 1, int64; fewer at the end of the stream."""
        stop = min(stop, len(self))
        return np.searchsorted(_array(self.ends), np.arange(start, stop), side="right")


def tokenize(
    source: Source, tokenizer: Tokenizer, cache: Path, share: tuple[int, int] = (0, 1)
) -> Tokens:
    """The tokens of every document that is not blank, each with BOS and EOS if the tokenizer has them.

    A marked source makes its own tokens, some of which are negative (data/marked_tokens.py).

    Args:
      cache: folder for stores of large texts, each in a folder named after text and tokenizer.
      share: the number of this process, and of all that make the store.

    Raises:
      UserError: all documents are blank, one cannot be read, or the store cannot be written.
    """
    if _is_small(source):
        tokens, lengths = _encode(source, range(len(source)), tokenizer)
        stream = Tokens((tokens,), np.array([0, len(tokens)]), np.cumsum(lengths))
    else:
        stream = _on_disk(source, tokenizer, _folder(source, tokenizer, cache), share)
    if not len(stream):
        raise UserError("the text is nothing but blanks; name files that contain text")
    return stream


def prepare(
    source: Source, tokenizer: Tokenizer, cache: Path, share: tuple[int, int]
) -> tuple[int, int, Path] | None:
    """Make one share of a store, for runs to find.

    Arguments and errors are those of `tokenize`.

    Returns:
      the pieces of this share, those of the store, and its folder; None for a small text, whose tokens
      are not stored.
    """
    if _is_small(source):
        return None
    folder = _folder(source, tokenizer, cache)
    count = len(_pieces(source)[0])
    own = _rounds(count, share)[0]
    _make(source, tokenizer, folder, own)
    return len(own), count, folder


def read_share(part: str) -> tuple[int, int]:
    """The number of a part, from 0, and of all parts, as --part names them.

    Raises:
      UserError: it is not K/N with K from 1 to N.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(
            f"--part={printable(part, 40)} is no part; write K/N with K from 1 to N, such as 3/16"
        )
    return int(match[1]) - 1, int(match[2])


def identity(tokenizer: Tokenizer) -> str:
    """A hash that identifies a tokenizer by its ids for a varied text and by its vocabulary."""
    probe = "The quick brown fox, isn't it?\n\n  def f(x): return x**2 + 10.5e-3  # 数学 été \U0001f600\t"
    probe += " ".join(map(chr, range(33, 1024)))
    special = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.vocab_size)
    step = max(1, tokenizer.vocab_size // 20_000)
    vocabulary = [tokenizer.decode([i]) for i in range(0, tokenizer.vocab_size, step)]
    content = json.dumps([special, tokenizer.encode(probe), vocabulary])
    return hashlib.sha256(content.encode()).hexdigest()


def _is_small(source: Source) -> bool:
    return sum(_stat(path)[0] for path in source.files) <= IN_MEMORY


def _folder(source: Source, tokenizer: Tokenizer, cache: Path) -> Path:
    return cache / "tokens" / _name(source, tokenizer)


def _name(source: Source, tokenizer: Tokenizer) -> str:
    # Sizes and times too: the fingerprint samples large files and may miss a change.
    stats = [_stat(path) for path in source.files]
    content: list[object] = [fingerprint(source), stats, identity(tokenizer)]
    if tokenizer.rows is not None and tokenizer.vocab_size > tokenizer.rows:
        content.append(tokenizer.rows)  # a text that fits into one model's table may not fit here
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _stat(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return state.st_size, state.st_mtime_ns


def _on_disk(
    source: Source, tokenizer: Tokenizer, folder: Path, share: tuple[int, int] = (0, 1)
) -> Tokens:
    names, pieces = _pieces(source)
    local = token_copies.local(folder)
    ends = local / "ends.npy"
    kind = _kind(source, tokenizer)
    lengths = _complete(local, names, pieces, kind)
    if lengths is None:
        made = _make(source, tokenizer, folder, *_rounds(len(pieces), share))
        lengths = [made[piece] for piece in range(len(pieces))]
        _mapped.cache_clear()  # of files that were broken
    total = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    known = cached_arrays.read(ends, np.int64, len(source), mapped=True)
    if known is None or not np.array_equal(known, total):
        replace_array(ends, total)
        _mapped.cache_clear()
    starts = np.concatenate([[0], total[[documents.stop - 1 for documents in pieces]]])
    return Tokens(tuple(local / f"tokens_{name}" for name in names), starts, ends)


def _pieces(source: Source) -> tuple[list[str], list[range]]:
    """The pieces of a store: the end of the names of their files, and their documents."""
    size = max(MIN_PIECE, -(-len(source) // MAX_PIECES))
    pieces = [range(i, min(i + size, len(source))) for i in range(0, len(source), size)]
    return [f"{piece:06d}.npy" for piece in range(len(pieces))], pieces


def _rounds(count: int, share: tuple[int, int]) -> list[list[int]]:
    """The numbers of a process's own pieces, in order, and those of all others, in an order of its own."""
    number, of = share
    own = range(count * number // of, count * (number + 1) // of)
    rest = [piece for piece in range(count) if piece not in own]
    random.Random(number).shuffle(rest)
    return [list(own), rest]


def _make(
    source: Source, tokenizer: Tokenizer, folder: Path, *rounds: list[int]
) -> dict[int, np.ndarray]:
    """Make pieces, by number, unless they are there; returns the lengths of their documents."""
    names, pieces = _pieces(source)
    lengths: dict[int, np.ndarray] = {}
    done, total = 0, sum(len(pieces[piece]) for numbers in rounds for piece in numbers)
    with Progress("tokenizing", 0, total) as bar:
        for numbers in rounds:
            token_copies.fetch(folder, [names[piece] for piece in numbers])
            for piece in numbers:
                lengths[piece] = _piece(source, pieces[piece], tokenizer, folder, names[piece])
                done += len(pieces[piece])
                bar.advance_to(done)
    return lengths


def _complete(
    folder: Path, names: list[str], pieces: list[range], kind: _Kind
) -> list[np.ndarray] | None:
    """The lengths of the documents of each piece, if all pieces are there and whole."""
    found = []
    for name, documents in zip(names, pieces, strict=True):
        if (lengths := _stored(folder, name, documents, kind)) is None:
            return None
        found.append(lengths)
    return found


def _stored(folder: Path, name: str, documents: range, kind: _Kind) -> np.ndarray | None:
    """The lengths of a piece's documents; None if the piece is not there, or is broken."""
    lengths = cached_arrays.read(folder / f"lengths_{name}", np.int64, len(documents))
    if lengths is None or (lengths < 0).any():
        return None
    tokens = folder / f"tokens_{name}"
    whole = cached_arrays.read(tokens, kind, int(lengths.sum()), mapped=True)
    return lengths if whole is not None else None


def _piece(
    source: Source, documents: range, tokenizer: Tokenizer, folder: Path, name: str
) -> np.ndarray:
    """Write a piece unless it is there; returns the lengths of its documents."""
    kind, local = _kind(source, tokenizer), token_copies.local(folder)
    if (lengths := _stored(local, name, documents, kind)) is not None:
        return lengths
    token_copies.fetch(folder, [name])  # another process may have made it meanwhile
    if (lengths := _stored(local, name, documents, kind)) is not None:
        return lengths
    tokens, lengths = _encode(source, documents, tokenizer)
    replace_array(local / f"tokens_{name}", tokens)
    replace_array(local / f"lengths_{name}", lengths)  # last: marks the piece as complete
    token_copies.send(folder, name)
    return lengths


def _kind(source: Source, tokenizer: Tokenizer) -> _Kind:
    small = tokenizer.vocab_size <= 1 << 16 and not isinstance(source, MarkedSource)
    return np.uint16 if small else np.int32


def _encode(
    source: Source, documents: range, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of these documents end to end, uint16 or int32, and each one's length, int64."""
    kind = _kind(source, tokenizer)
    tokens, lengths = [np.zeros(0, kind)], np.zeros(len(documents), np.int64)
    for index, row in _rows(source, documents, tokenizer):
        if len(row) and row.max() > np.iinfo(kind).max:
            raise UserError(
                f"the tokenizer gives the id {row.max()}, beyond its own {tokenizer.vocab_size}"
            )
        tokens.append(row.astype(kind))
        lengths[index - documents.start] = len(row)
    return np.concatenate(tokens), lengths


def _rows(
    source: Source, documents: range, tokenizer: Tokenizer
) -> Iterator[tuple[int, np.ndarray]]:
    """The numbers of these documents and their tokens; blank documents may be left out."""
    if isinstance(source, MarkedSource):
        for index in documents:
            yield index, source.tokens(index, tokenizer)
        return
    opening = np.array(tokenizer.opening, np.int32)
    closing = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], np.int32)
    for batch in _batches(source, documents):
        encoded = long_texts.encode_batch(tokenizer, list(batch.values()))
        for index, ids in zip(batch, encoded, strict=True):
            yield index, np.concatenate([opening, tokenizer.after_opening(ids), closing])


def _batches(source: Source, documents: range) -> Iterator[dict[int, str]]:
    """Documents that are not blank, by number, in batches of a few million characters."""
    batch: dict[int, str] = {}
    size = 0
    for index in documents:
        if not is_blank(text := source[index]):
            batch[index] = text
            size += len(text)
        if size > _CHARACTERS:
            yield batch
            batch, size = {}, 0
    yield batch


def _array(values: np.ndarray | Path) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else _mapped(values)


@functools.lru_cache(maxsize=256)
def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove {path.parent} and start again"
        ) from error
