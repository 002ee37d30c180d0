"""Text files: `.txt` with one document per file, `.jsonl` with one per line."""

from __future__ import annotations

import array
import codecs
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fqs_jax.data.sources.options import Options
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.files import replace_array
from fqs_jax.runtime.progress import Progress

_GZIP = b"\x1f\x8b"  # the first bytes of a compressed file
LARGE = 1 << 24  # bytes; the line offsets of a larger file are cached on disk


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Files of one document each, in UTF-8. Line ends become newlines."""

    files: tuple[Path, ...]
    settings: str = "txt"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        path = self.files[index]
        try:
            text = decode(path.read_bytes(), path)
        except OSError as error:
            raise unreadable(path, error) from error
        return text.replace("\r\n", "\n").replace("\r", "\n")


def open_text_files(paths: tuple[Path, ...]) -> TextFiles:
    """The files that are not blank; each is read once to find out.

    Raises:
      UserError: a file is unreadable or not UTF-8.
    """
    files = TextFiles(paths)
    return TextFiles(tuple(path for i, path in enumerate(paths) if files[i].strip()))


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines:
    """One string of the JSON object on each line; lines without text are left out.

    Attributes:
      offsets: byte offsets of the documents' lines, int64.
    """

    files: tuple[Path, ...]
    key: str
    offsets: np.ndarray

    @property
    def settings(self) -> str:
        return f"jsonl {self.key}"

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> str:
        path, offset = self.files[0], int(self.offsets[index])
        try:
            with path.open("rb") as file:
                file.seek(offset)
                line = decode(file.readline(), path, offset)
        except OSError as error:
            raise unreadable(path, error) from error
        return text_of(line, self.key, location=f"{path}, byte {offset}")


def open_json_lines(path: Path, key: str, options: Options) -> JsonLines:
    """The documents of a `.jsonl` file; every line is checked.

    The offsets of a large file are cached on disk, so it is checked only once.

    Raises:
      UserError: a line is not UTF-8, not JSON, or has no string under the key.
    """
    try:
        state = path.stat()
        if state.st_size <= LARGE:
            return JsonLines((path,), key, _line_offsets(path, key))
        name = repr((str(path.resolve()), state.st_size, state.st_mtime_ns, key))
        cached = options.cache / "lines" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"
        if not cached.exists():
            with Progress(f"checking {path.name} (MB)", 0, state.st_size >> 20) as bar:
                replace_array(cached, _line_offsets(path, key, bar.advance_to))
        return JsonLines((path,), key, np.load(cached, allow_pickle=False))
    except OSError as error:
        raise unreadable(path, error) from error


def _line_offsets(
    path: Path, key: str, progress: Callable[[int], None] = lambda megabytes: None
) -> np.ndarray:
    # Lines of bytes end only at "\n". str.splitlines() would also break lines at characters such as
    # U+2028, which a JSON string may contain unescaped.
    offset, offsets = 0, array.array("q")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = decode(line, path, offset)
            if text.strip() and text_of(text, key, location=f"{path}:{number}").strip():
                offsets.append(offset)
            offset += len(line)
            if number % 1000 == 0:
                progress(offset >> 20)
    progress(offset >> 20)
    return np.asarray(offsets, np.int64)


def text_of(line: str, key: str, location: str) -> str:
    """The string under a key of the JSON object in a line.

    Args:
      location: file and line, for error messages.

    Raises:
      UserError: the line is not a JSON object, or has no string of valid Unicode under the key.
    """
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))
        raise UserError(
            f"{location}: not JSON ({reason}); each line must hold one object"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{location}: {_kind(record)}, but each line must hold an object")
    if key not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise UserError(f"{location}: no key {key!r}; name the one with the text (seen: {keys})")
    text = record[key]
    if not isinstance(text, str):
        raise UserError(f"{location}: {key!r} holds {_kind(text)}; it must hold a string")
    return whole(text, key, location)


def whole(text: str, key: str, location: str) -> str:
    """The same text, after a check that it has no half surrogate pairs.

    "\\ud83d" alone is valid JSON, but no tokenizer accepts it.

    Raises:
      UserError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{location}: half a surrogate pair at character {error.start} of {key!r}; "
            "repair or remove the line"
        ) from error
    return text


def decode(data: bytes, path: Path, offset: int = 0) -> str:
    """UTF-8 bytes that begin at `offset` of a file, as text without the byte order mark.

    Raises:
      UserError: the bytes are not UTF-8; the message shows how to convert the file.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if data.startswith(_GZIP) and offset == 0:
            raise UserError(f'{path}: compressed; unpack it first: gunzip "{path}"') from error
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "UTF-16" if is_utf16 and offset == 0 else "LATIN1"
        raise UserError(
            f"{path}: not UTF-8 at byte {offset + error.start}; "
            f'convert it, for example: iconv -f {encoding} -t UTF-8 "{path}" > NEW'
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def unreadable(path: Path, error: OSError) -> UserError:
    """The error message for a file that the operating system does not let us read."""
    way = "check the name" if isinstance(error, FileNotFoundError) else "make it readable"
    return UserError(f"{path}: {error.strerror or error}; {way} or leave it out")


def damaged(path: Path, error: Exception) -> UserError:
    """The error message for a file that its library cannot read."""
    reason = " ".join(str(error).split())[:150]
    return UserError(f"{path}: damaged or of another kind ({reason}); fetch or write it again")


def _kind(value: Any) -> str:
    """JSON's name for the type of a value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
