"""Columns of text: Parquet files, and folders saved by Hugging Face `datasets`."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from fqs_jax.data.sources import table_cache, table_check, text_files
from fqs_jax.data.sources.options import Options
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

DATASET, SPLITS = "state.json", "dataset_dict.json"  # mark folders of `save_to_disk`


@dataclasses.dataclass(frozen=True)
class Table:
    """A column of one file. Nulls are blank documents; groups of rows without any text are left out.

    Attributes:
      checked: what is in the file; a file that changes later is refused.
      read: a function (file, what is in it, group, row of the group, column) -> the value.
      groups: the numbers of the groups of rows with text.
      ends: the number of rows up to the end of each of these groups.
    """

    files: tuple[Path, ...]
    key: str
    checked: table_check.Checked
    read: Callable[[Path, table_check.Checked, int, int, str], str | None]
    groups: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def settings(self) -> str:
        return f"table {self.key}"

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def place(self, index: int) -> str:
        return f"{inputs.name(self.files[0])}, row {index}"

    def __getitem__(self, index: int) -> str:
        place = bisect.bisect_right(self.ends, index)
        row = index - (self.ends[place - 1] if place else 0)
        path = self.files[0]
        try:
            return self.read(path, self.checked, self.groups[place], row, self.key) or ""
        except OSError as error:
            raise text_files.unreadable(path, error) from error
        except (pyarrow.ArrowException, ValueError, LookupError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise text_files.damaged(path, error) from error


def open_parquet(paths: Sequence[Path], key: str, options: Options) -> list[Table]:
    """A column of Parquet files; a group of rows is read when one of its documents is requested.

    Raises:
      UserError: a file is damaged, or has no column of strings by that name.
    """
    return _open("parquet", paths, key, options, table_cache.parquet_value)


def open_saved_dataset(folder: Path, split: str, key: str, options: Options) -> list[Table]:
    """A column of a folder that `datasets` saved with `save_to_disk`: one table per file.

    Args:
      split: a split of a DatasetDict; empty for its only split, or for a single dataset.

    Raises:
      UserError: a file is missing or damaged, or no such split or column exists.
    """
    if (folder / SPLITS).is_file():
        splits = _names(folder / SPLITS, "splits")
        name = split or (splits[0] if len(splits) == 1 else "")
        if name not in splits:
            problem = f"no split {split!r}" if split else "several splits"
            listed = printable(", ".join(splits), 200)
            raise UserError(f"{folder}: {problem}; name one of {listed} as {folder}:SPLIT")
        folder = folder / name
    elif split:
        raise UserError(f"{folder} is one dataset without splits; leave out :{split}")
    state = folder / DATASET
    if inputs.read_json(state).get("_indices_data_files"):  # written by old versions
        raise UserError(f"{folder} holds a selection of rows; save it after flatten_indices()")
    paths = [folder / name for name in _names(state, "_data_files", "filename")]
    return _open("arrow", paths, key, options, table_cache.arrow_value)


def _open(
    kind: str, paths: Sequence[Path], key: str, options: Options, read: Callable[..., str | None]
) -> list[Table]:
    tables = []
    for path, checked in zip(
        paths, table_check.check(kind, paths, key, options.cache), strict=True
    ):
        groups = tuple(i for i, (_, size) in enumerate(checked.groups) if size)
        ends = tuple(itertools.accumulate(checked.groups[i][0] for i in groups))
        tables.append(Table((path,), key, checked, read, groups, ends))
    return tables


def _names(path: Path, field: str, inner: str = "") -> list[str]:
    """The names of files or folders in a list of a JSON file; they are in the folder of that file.

    Args:
      inner: where each entry of the list is an object, its field with the name.
    """
    values: Any = inputs.read_json(path).get(field)
    if not isinstance(values, list):
        raise UserError(f"{path}: no list {field!r}; the folder is incomplete, save it again")
    if inner:
        values = [value.get(inner) if isinstance(value, dict) else None for value in values]
    for value in values:
        if not isinstance(value, str) or not _is_plain(value):
            shown = printable(repr(value), 100)
            raise UserError(
                f"{path}: {field!r} lists {shown}, which is no name of a file of this folder; "
                "save the dataset again"
            )
    return values


def _is_plain(name: str) -> bool:
    """True for the name of something in a folder; a path would lead out of it."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}
