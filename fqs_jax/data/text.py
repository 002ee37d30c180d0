"""Reading documents from text files."""

from __future__ import annotations

import codecs
import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fqs_jax.errors import UserError

SUFFIXES = (".txt", ".jsonl")


def read_documents(patterns: str | Sequence[str], key: str = "text") -> list[str]:
    r"""All documents of the named files, in the sorted order of the files' paths.

    A `.txt` file is one document. A `.jsonl` file holds one a line, the string under `key` of a
    JSON object. Text is UTF-8, with or without a byte order mark; line ends of `.txt` files become
    "\n". Blank documents are left out, and a path that matches twice is read once.

    Args:
      patterns: paths or globs (`**` spans folders), comma-separated or as a list. A path that holds
        a comma must come in a list.

    Raises:
      UserError: a pattern matches no file, or a file is of another kind, unreadable, not UTF-8, not
        JSON or without the key, or nothing but blanks was found.
    """
    files = find_files(patterns)
    documents = [text for path in files for text in _read_file(path, key) if text.strip()]
    if not documents:
        others = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise UserError(f"{files[0]}{others}: nothing but blanks; name files with text in them")
    return documents


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """The `.txt` and `.jsonl` files that match any of the patterns, sorted, each path once."""
    names = patterns.split(",") if isinstance(patterns, str) else patterns
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UserError("no text files were named; give paths or globs of .txt or .jsonl files")
    return sorted({path for name in names for path in _match(name)}, key=str)


def _match(pattern: str) -> list[Path]:
    literal = Path(pattern).expanduser()
    if literal.is_dir():
        raise UserError(f"{pattern} is a folder; name its files, for example {literal}/*.txt")
    # A file that exists is meant literally, even if its name reads as a glob ("part[1].txt").
    found = [literal] if literal.exists() else map(Path, glob.glob(str(literal), recursive=True))
    files = [path for path in found if not path.is_dir()]
    if not files:
        raise UserError(f"no file matches {pattern} (looked from {Path.cwd()}); check the path")
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: not a .txt or .jsonl file; leave it out or convert it")
    return files


def _read_file(path: Path, key: str) -> Iterator[str]:
    try:
        if path.suffix.lower() == ".txt":
            text = _decode(path.read_bytes(), path)
            yield text.replace("\r\n", "\n").replace("\r", "\n")
        else:
            yield from _read_jsonl(path, key)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable or leave it out") from error


def _read_jsonl(path: Path, key: str) -> Iterator[str]:
    # Lines of bytes end at "\n" only; str.splitlines() would also break at characters such as
    # U+2028, which a JSON string may hold as they are.
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = _decode(line, path, offset)
            offset += len(line)
            if text.strip():
                yield _text_of(text, key, where=f"{path}:{number}")


def _text_of(line: str, key: str, where: str) -> str:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))
        raise UserError(f"{where}: not JSON ({reason}); each line must hold one object") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: {_kind(record)}, but each line must hold an object")
    if key not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise UserError(f"{where}: no key {key!r}; name the one with the text (seen: {keys})")
    text = record[key]
    if not isinstance(text, str):
        raise UserError(f"{where}: {key!r} holds {_kind(text)}; it must hold a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud83d" alone is JSON, but no tokenizer takes it
        raise UserError(
            f"{where}: half a surrogate pair at character {error.start} of {key!r}; "
            "repair or remove the line"
        ) from error
    return text


def _decode(data: bytes, path: Path, offset: int = 0) -> str:
    """Bytes that begin at `offset` of a file, as text without the byte order mark."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "UTF-16" if is_utf16 and offset == 0 else "LATIN1"
        raise UserError(
            f"{path}: not UTF-8 at byte {offset + error.start}; "
            f'convert it, for example: iconv -f {encoding} -t UTF-8 "{path}" > NEW'
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _kind(value: Any) -> str:
    """What JSON calls the value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
