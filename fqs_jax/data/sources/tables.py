"""Columns of text: Parquet files, and folders saved by Hugging Face `datasets`."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from fqs_jax.data.sources import text_files
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

DATASET, SPLITS = "state.json", "dataset_dict.json"  # mark folders of `save_to_disk`


@dataclasses.dataclass(frozen=True)
class Table:
    """A column of one file. Nulls are blank documents.

    Attributes:
      stamp: size and modification time of the file, so that caches do not serve an older one.
      read: a function (file, stamp, group, column) -> the column in that group of rows.
      ends: the number of rows up to the end of each group.
    """

    files: tuple[Path, ...]
    key: str
    stamp: tuple[int, int]
    read: Callable[[Path, tuple[int, int], int, str], pyarrow.ChunkedArray]
    ends: tuple[int, ...]

    @property
    def settings(self) -> str:
        return f"table {self.key}"

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> str:
        group = bisect.bisect_right(self.ends, index)
        first = self.ends[group - 1] if group else 0
        try:
            return self._column(group)[index - first].as_py() or ""
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise _damaged(self.files[0], error) from error

    def _column(self, group: int) -> pyarrow.ChunkedArray:
        return self.read(self.files[0], self.stamp, group, self.key)


def open_parquet(path: Path, key: str) -> Table:
    """A column of a Parquet file; a group of rows is read when one of its documents is requested.

    Raises:
      UserError: the file is damaged, or has no column of strings by that name.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_column(path, file.schema_arrow, key)
            groups = (file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))
            return Table((path,), key, _stamp(path), _parquet_rows, _ends(groups))
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


@functools.lru_cache(maxsize=8)
def _parquet_rows(path: Path, stamp: tuple[int, int], group: int, key: str) -> pyarrow.ChunkedArray:
    del stamp
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[key]).column(key)


def open_saved_dataset(folder: Path, split: str, key: str) -> list[Table]:
    """A column of a folder that `datasets` saved with `save_to_disk`: one table per file.

    Args:
      split: a split of a DatasetDict; empty for its only split, or for a single dataset.

    Raises:
      UserError: a file is missing or damaged, or no such split or column exists.
    """
    if (folder / SPLITS).is_file():
        splits = _listed(folder / SPLITS, "splits")
        name = split or (splits[0] if len(splits) == 1 else "")
        if name not in splits:
            problem = f"no split {split!r}" if split else "several splits"
            raise UserError(
                f"{folder}: {problem}; name one of {', '.join(splits)} as {folder}:SPLIT"
            )
        folder = folder / name
    elif split:
        raise UserError(f"{folder} is one dataset without splits; leave out :{split}")
    state = folder / DATASET
    if inputs.read_json(state).get("_indices_data_files"):  # written by old versions
        raise UserError(f"{folder} holds a selection of rows; save it after flatten_indices()")
    names = _listed(state, "_data_files")
    return [_open_arrow(folder / str(name["filename"]), key) for name in names]


def _listed(path: Path, field: str) -> list[Any]:
    values = inputs.read_json(path).get(field)
    if not isinstance(values, list):
        raise UserError(f"{path}: no list {field!r}; the folder is incomplete, save it again")
    return values


def _open_arrow(path: Path, key: str) -> Table:
    try:
        stamp = _stamp(path)
        table = _arrow_table(path, stamp)
        _check_column(path, table.schema, key)
        return Table((path,), key, stamp, _arrow_rows, (table.num_rows,))
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _arrow_rows(path: Path, stamp: tuple[int, int], group: int, key: str) -> pyarrow.ChunkedArray:
    del group  # the whole file is memory-mapped and read page by page
    return _arrow_table(path, stamp).column(key)


@functools.lru_cache(maxsize=1024)
def _arrow_table(path: Path, stamp: tuple[int, int]) -> pyarrow.Table:
    del stamp
    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(source).read_all()  # the format that `datasets` writes
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source).read_all()


def _check_column(path: Path, schema: pyarrow.Schema, key: str) -> None:
    if key not in schema.names:
        seen = ", ".join(map(repr, schema.names)) or "none"
        raise UserError(f"{path}: no column {key!r}; name the one with the text (seen: {seen})")
    kind = schema.field(key).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{path}: column {key!r} holds {kind}; it must hold strings")


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _ends(sizes: Any) -> tuple[int, ...]:
    total, ends = 0, []
    for size in sizes:
        total += size
        ends.append(total)
    return tuple(ends)


def _damaged(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return text_files.unreadable(path, error)
    return text_files.damaged(path, error)
