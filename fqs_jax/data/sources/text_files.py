"""Text files: `.txt` with one document per file, `.jsonl` with one per line."""

from __future__ import annotations

import array
import codecs
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fqs_jax.data import cached_arrays
from fqs_jax.data.sources.options import Options
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.files import replace_array
from fqs_jax.runtime.progress import Progress

_GZIP = b"\x1f\x8b"  # the first bytes of a compressed file
# A function (line, key, place for errors) -> the document in a line of JSON.
Reader = Callable[[str, str, str], str]
LARGE = 1 << 24  # bytes; the line offsets of a larger file are cached on disk
MOST_DOCUMENT = 1 << 28  # bytes of a document, and of its line with all other fields


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Files of one document each, in UTF-8. Line ends become newlines."""

    files: tuple[Path, ...]
    settings: str = "txt"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        path = self.files[index]
        if check_file(path).st_size > MOST_DOCUMENT:
            raise too_large(f"{inputs.name(path)} is one document")
        text = decode(inputs.read_bytes(path, MOST_DOCUMENT), path)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def place(self, index: int) -> str:
        return inputs.name(self.files[index])


def open_text_files(paths: tuple[Path, ...]) -> TextFiles:
    """The files that are not blank; each is read once to find out.

    Raises:
      UserError: a file is unreadable or not UTF-8.
    """
    files = TextFiles(paths)
    return TextFiles(tuple(path for i, path in enumerate(paths) if not is_blank(files[i])))


@dataclasses.dataclass(frozen=True, eq=False)
class JsonLines:
    """One value of the JSON object on each line; lines without text are left out.

    Attributes:
      offsets: byte offsets of the documents' lines, int64.
      read: of the document in a line.
    """

    files: tuple[Path, ...]
    key: str
    offsets: np.ndarray
    read: Reader

    @property
    def settings(self) -> str:
        return f"{_kind(self.read)} {self.key}"

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> str:
        path, offset = self.files[0], int(self.offsets[index])
        try:
            with open_file(path) as file:
                file.seek(offset)
                line = decode(file.readline(MOST_DOCUMENT), path, offset)
        except OSError as error:
            raise unreadable(path, error) from error
        return self.read(line, self.key, f"{inputs.name(path)}, byte {offset}")

    def place(self, index: int) -> str:
        path, left, line = self.files[0], int(self.offsets[index]), 1
        with open_file(path) as file:
            while left and (block := file.read(min(left, 1 << 20))):
                left, line = left - len(block), line + block.count(b"\n")
        return f"{inputs.name(path)}:{line}"


def open_json_lines(path: Path, key: str, options: Options, read: Reader) -> JsonLines:
    """The documents of a `.jsonl` file; every line is checked.

    The offsets of a large file are cached on disk, so it is checked only once.

    Raises:
      UserError: a line is not UTF-8, not JSON, or has no document under the key.
    """
    state = check_file(path)
    try:
        if state.st_size <= LARGE:
            return JsonLines((path,), key, _line_offsets(path, key, read), read)
        about = (str(path.resolve()), state.st_size, state.st_mtime_ns, key)
        name = repr(about if read is text_of else (*about, _kind(read)))
        cached = options.cache / "lines" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"
        offsets = cached_arrays.read(cached, np.int64)
        if offsets is None or not _are_offsets(offsets, state.st_size):
            with Progress(f"checking {path.name} (MB)", 0, state.st_size >> 20) as bar:
                offsets = _line_offsets(path, key, read, bar.advance_to)
            replace_array(cached, offsets)
        return JsonLines((path,), key, offsets, read)
    except OSError as error:
        raise unreadable(path, error) from error


def _are_offsets(values: np.ndarray, size: int) -> bool:
    """True if these can be the offsets of lines in a file of that size."""
    inside = not len(values) or 0 <= values[0] <= values[-1] < size
    return inside and bool((values[1:] > values[:-1]).all())


def _kind(read: Reader) -> str:
    """The kind of the documents that a reader makes, as sources are identified by."""
    return "jsonl" if read is text_of else f"jsonl {read.__name__}"


def _line_offsets(
    path: Path, key: str, read: Reader, progress: Callable[[int], None] = lambda megabytes: None
) -> np.ndarray:
    # Lines of bytes end only at "\n". str.splitlines() would also break lines at characters such as
    # U+2028, which a JSON string may contain unescaped.
    offset, offsets = 0, array.array("q")
    with open_file(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_DOCUMENT + 1), b""), start=1):
            if len(line) > MOST_DOCUMENT:
                raise too_large(f"{inputs.name(path)}:{number} is one line")
            text = decode(line, path, offset)
            if not is_blank(text) and not is_blank(
                read(text, key, f"{inputs.name(path)}:{number}")
            ):
                offsets.append(offset)
            offset += len(line)
            if number % 1000 == 0:
                progress(offset >> 20)
    progress(offset >> 20)
    return np.asarray(offsets, np.int64)


def is_blank(text: str) -> bool:
    """True for a text of white space only; unlike `strip`, this copies nothing."""
    return not text or text.isspace()


def json_of(line: str, location: str) -> Any:
    """The JSON value in a line.

    Args:
      location: file and line, for error messages.

    Raises:
      UserError: the line is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = printable(getattr(error, "msg", str(error)), 200)
        raise UserError(
            f"{location}: not JSON ({reason}); each line must hold one object"
        ) from error


def value_of(line: str, key: str, location: str) -> Any:
    """The value under a key of the JSON object in a line.

    Args:
      location: file and line, for error messages.

    Raises:
      UserError: the line is not a JSON object, or has not the key.
    """
    record = json_of(line, location)
    if not isinstance(record, dict):
        raise UserError(f"{location}: {kind_of(record)}, but each line must hold an object")
    if key not in record:
        keys = printable(", ".join(map(repr, record)) or "none", 400)
        raise UserError(f"{location}: no key {key!r}; name the one with the text (seen: {keys})")
    return record[key]


def text_of(line: str, key: str, location: str) -> str:
    """The string under a key of the JSON object in a line; null is a blank document.

    Raises:
      UserError: as for `value_of`, or the value is no string of valid Unicode.
    """
    text = value_of(line, key, location)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(f"{location}: {key!r} holds {kind_of(text)}; it must hold a string")
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
      UserError: the bytes are not UTF-8, or have a NUL, which no text has; the message shows how to
        convert the file.
    """
    nul, shown = data.find(0), inputs.name(path)
    try:
        text = data.decode()
        if nul < 0:
            return text.removeprefix("\ufeff") if offset == 0 else text
        problem = f"a NUL at byte {offset + nul}, which text does not have"
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {offset + error.start}"
    if data.startswith(_GZIP) and offset == 0:
        raise UserError(f'{shown}: compressed; unpack it first: gunzip "{shown}"')
    encoding = _encoding(data, offset)
    if encoding is None:
        raise UserError(f"{shown}: {problem}; it is no text file, leave it out")
    raise UserError(
        f'{path}: {problem}; convert it, for example: iconv -f {encoding} -t UTF-8 "{shown}" > NEW'
    )


def _encoding(data: bytes, offset: int) -> str | None:
    """The likely encoding of text that is not UTF-8; None for what is no text."""
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    sample = data[:4096]
    if not sample.count(0):
        return "LATIN1"
    # A Latin letter is one byte with NULs before or behind it.
    often = [sample[place::4].count(0) * 10 > len(sample) for place in range(4)]
    nuls = "".join("0" if nul else "x" for nul in often)
    known = {"x0x0": "UTF-16LE", "0x0x": "UTF-16BE", "x000": "UTF-32LE", "000x": "UTF-32BE"}
    return known.get(nuls)


def check_file(path: Path) -> os.stat_result:
    """The state of a regular file.

    Raises:
      UserError: it is unreadable, or a folder, a pipe, a device or a socket.
    """
    try:
        path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return inputs.check_file(path)


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises:
      UserError: as for `check_file`.
    """
    check_file(path)
    return inputs.open_file(path)


def most_unpacked(size: int) -> int:
    """The largest document, in bytes, of a compressed file of this size.

    A small file cannot fill the memory: text that shrinks to less than a sixth is hardly text.
    """
    return min(MOST_DOCUMENT, max(MOST_DOCUMENT // 4, 6 * size))


def too_large(what: str, most: int | None = None) -> UserError:
    """The error message for a document that is too large to be read at once."""
    most = most or MOST_DOCUMENT
    return UserError(
        f"{what} of more than {most >> 20} MiB, the most that is read at once; divide it"
    )


def unreadable(path: Path, error: OSError) -> UserError:
    """The error message for a file that the operating system does not let us read."""
    way = "check the name" if isinstance(error, FileNotFoundError) else "make it readable"
    return UserError(f"{inputs.name(path)}: {error.strerror or error}; {way} or leave it out")


def damaged(path: Path, error: Exception | str) -> UserError:
    """The error message for a file that its library cannot read."""
    reason = printable(" ".join(str(error).split()), 150)
    return UserError(
        f"{inputs.name(path)}: damaged or of another kind ({reason}); fetch or write it again"
    )


def kind_of(value: Any) -> str:
    """JSON's name for the type of a value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
