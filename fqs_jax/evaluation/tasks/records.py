"""Records of a dataset with all their fields, for datasets that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow

from fqs_jax.data.sources import hub, table_check, table_child, text_files, tfds_datasets
from fqs_jax.data.sources.options import Options
from fqs_jax.runtime import inputs, local_copies, paths
from fqs_jax.runtime.errors import UserError, printable

Record = tuple[str, dict[str, Any]]  # its place, for error messages; its fields


def read(source: str, key: str, options: Options) -> list[Record]:
    """All records of a `.jsonl` or `.parquet` file, of tfds:NAME:SPLIT, or of hub:OWNER/NAME:SPLIT.

    Args:
      key: a text field that the records have.

    Raises:
      UserError: the source is missing, empty or unreadable, or no split is named.
    """
    given, source = source, local_copies.of_text(source)
    kind, _, rest = source.partition(":")
    if kind in ("tfds", "hub"):
        paths.expand_local(rest)  # refuses addresses
        name, _, split = rest.partition(":")
        if (
            not name or not split
        ):  # elsewhere the default is train, which must not be used for scores
            raise UserError(f"{source}: name the split too, as {kind}:NAME:SPLIT")
        if kind == "tfds":
            found = list(_tfds(name, split, key, options))
        else:
            found = list(_parquet(hub.parquet_files(name, split, options), options))
    elif source.endswith(".parquet"):
        found = list(_parquet([paths.expand_local(source)], options))
    else:
        found = list(_json_lines(paths.expand_local(source)))
    if not found:
        raise UserError(f"{inputs.name(given)} has no records; name a file with some")
    return found


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, each with its number, from 1."""
    text_files.check_file(path)
    text = text_files.decode(inputs.read_bytes(path), path)
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def text(where: str, fields: dict[str, Any], name: str) -> str:
    """The value of a field that must be text.

    Args:
      where: the record's place, for error messages.
    """
    if name not in fields:
        seen = printable(", ".join(map(repr, fields)) or "none", 400)
        raise UserError(f"{where}: no text {name!r} (seen: {seen}); is this the right --task?")
    value = fields[name]
    if not isinstance(value, str):
        kind = text_files.kind_of(value)
        raise UserError(f"{where}: {name!r} holds {kind}; it must hold a string")
    return text_files.whole(value, name, where)


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in numbered_lines(path):
        where = f"{inputs.name(path)}:{number}"
        fields = text_files.json_of(line, where)
        if not isinstance(fields, dict):
            raise UserError(
                f"{where}: each line must hold an object, found a {type(fields).__name__}"
            )
        yield where, fields


def _parquet(files: list[Path], options: Options) -> Iterator[Record]:
    for path, checked in zip(
        files, table_check.check("parquet", files, None, options.cache), strict=True
    ):
        number = 0
        for group in range(len(checked.groups)):
            try:
                parts = table_child.parquet_batches(str(path), group, None, checked.batch)
                rows = [row for part in parts for row in part.to_pylist()]
            except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
                raise text_files.damaged(path, error) from error
            for fields in rows:
                yield f"{inputs.name(path)}, row {number}", fields
                number += 1


def _tfds(name: str, split: str, key: str, options: Options) -> Iterator[Record]:
    examples = tfds_datasets.open_tfds(name, split, key, options)
    for number in range(len(examples)):
        where = f"tfds:{name}:{split}, example {number}"
        yield where, {n: _plain(value) for n, value in examples.example(number).items()}


def _plain(value: Any) -> Any:
    """The value with strings in place of the bytes that TFDS stores."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
