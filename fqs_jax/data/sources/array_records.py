"""ArrayRecord files, and the records in them by number."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from fqs_jax.data.sources import text_files
from fqs_jax.data.sources.tfds_folder import FEATURES
from fqs_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """Records of UTF-8 text, or of JSON objects with the text under a key."""

    files: tuple[Path, ...]
    key: str
    is_json: bool
    size: int
    read: text_files.Reader

    @property
    def settings(self) -> str:
        kind = "" if self.read is text_files.text_of else f"{self.read.__name__} "
        return f"array_record {kind}{self.key if self.is_json else ''}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str:
        text = _record_text(self.files[0], index)
        return self.read(text, self.key, self.place(index)) if self.is_json else text

    def place(self, index: int) -> str:
        return f"{self.files[0]}, record {index}"


def open_array_records(path: Path, key: str, read: text_files.Reader) -> ArrayRecords:
    """The documents of an ArrayRecord file. The first record decides whether all are JSON objects.

    Args:
      read: of the document in a JSON object; if it does not read text, all records must be objects.

    Raises:
      UserError: the file is damaged or belongs to a TFDS dataset, or the first record has no text
        under the key.
    """
    if (path.parent / FEATURES).is_file():
        raise UserError(f"{path} is part of a TFDS dataset; name its folder, tfds:{path.parent}")
    size = count(path)
    is_json = read is not text_files.text_of
    if size and not is_json:
        text = _record_text(path, 0)
        with contextlib.suppress(ValueError, RecursionError):
            is_json = isinstance(json.loads(text), dict)
    records = ArrayRecords((path,), key, is_json, size, read)
    if size:
        records[0]
    return records


def count(path: Path) -> int:
    """The number of records in a file.

    Raises:
      UserError: it is no ArrayRecord file.
    """
    try:
        return _reader(path).num_records()
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise text_files.damaged(path, error) from error


def record(path: Path, index: int) -> bytes:
    """A record by its number in a file.

    Raises:
      UserError: it cannot be read, or is larger than a document may be.
    """
    try:
        data: bytes = _reader(path).read([index])[0]
    except (RuntimeError, ValueError, LookupError, TypeError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise text_files.damaged(path, error) from error
    if len(data) > text_files.MOST_DOCUMENT // 4:
        most = text_files.most_unpacked(text_files.check_file(path).st_size)
        if len(data) > most:
            raise text_files.too_large(f"{path}, record {index} is one document", most)
    return data


@functools.lru_cache(maxsize=256)
def _reader(path: Path) -> Any:
    text_files.check_file(path)
    # No read-ahead: records are read in random order.
    reader = array_record_module.ArrayRecordReader(
        str(path), options="readahead_buffer_size:0", file_reader_buffer_size=1 << 15
    )
    if not reader.ok():
        reader.close()  # raises the reason
    return reader


def _record_text(path: Path, index: int) -> str:
    try:
        return record(path, index).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, record {index}: not UTF-8 text; write records of text") from error
