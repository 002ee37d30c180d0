"""Records of a dataset with all their fields, for datasets that fit in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from fqs_jax.data.sources import array_records, hub, text_files
from fqs_jax.data.sources.options import Options
from fqs_jax.runtime.errors import UserError

Record = tuple[str, dict[str, Any]]  # its place, for error messages; its fields


def read(source: str, key: str, options: Options) -> list[Record]:
    """All records of a `.jsonl` or `.parquet` file, of tfds:NAME:SPLIT, or of hub:OWNER/NAME:SPLIT.

    Args:
      key: a text field that the records have.

    Raises:
      UserError: the source is missing, empty or unreadable, or no split is named.
    """
    kind, _, rest = source.partition(":")
    if kind in ("tfds", "hub"):
        name, _, split = rest.partition(":")
        if (
            not name or not split
        ):  # elsewhere the default is train, which must not be used for scores
            raise UserError(f"{source}: name the split too, as {kind}:NAME:SPLIT")
        if kind == "tfds":
            found = list(_tfds(name, split, key, options))
        else:
            paths = hub.parquet_files(name, split, options)
            found = [record for path in paths for record in _parquet(path)]
    elif source.endswith(".parquet"):
        found = list(_parquet(Path(source).expanduser()))
    else:
        found = list(_json_lines(Path(source).expanduser()))
    if not found:
        raise UserError(f"{source} has no records; name a file with some")
    return found


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, each with its number, from 1."""
    try:
        text = text_files.decode(path.read_bytes(), path)
    except OSError as error:
        raise text_files.unreadable(path, error) from error
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def text(where: str, fields: dict[str, Any], name: str) -> str:
    """The value of a field that must be text.

    Args:
      where: the record's place, for error messages.
    """
    value = fields.get(name)
    if not isinstance(value, str):
        seen = ", ".join(map(repr, fields)) or "none"
        raise UserError(f"{where}: no text {name!r} (seen: {seen}); is this the right --task?")
    return text_files.whole(value, name, where)


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise UserError(
                f"{where}: not JSON ({reason}); each line must hold one object"
            ) from error
        if not isinstance(fields, dict):
            raise UserError(
                f"{where}: each line must hold an object, found a {type(fields).__name__}"
            )
        yield where, fields


def _parquet(path: Path) -> Iterator[Record]:
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path}: cannot be read as Parquet ({reason})") from error
    for number, fields in enumerate(rows):
        yield f"{path}, row {number}", fields


def _tfds(name: str, split: str, key: str, options: Options) -> Iterator[Record]:
    import tensorflow_datasets as tfds

    source = array_records.open_tfds(name, split, key, options)  # raises a clear error
    examples = tfds.builder_from_directory(source.folder).as_data_source(split=source.split)
    for number in range(len(examples)):
        yield f"tfds:{name}:{split}, example {number}", _plain(examples[number])


def _plain(value: Any) -> Any:
    """The value with NumPy types replaced by those of JSON."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | list):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return value.decode() if isinstance(value, bytes) else value
