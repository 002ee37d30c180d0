"""Values of tables by their number, and the groups of rows that are kept in memory for them."""

from __future__ import annotations

import collections
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow

from fqs_jax.data.sources import table_child
from fqs_jax.data.sources.table_check import Checked, stamp_of
from fqs_jax.runtime.errors import UserError

KEPT = 1 << 29  # bytes of groups in memory; a group with more is read in batches


class _Groups:
    """The groups of rows that were used last, KEPT bytes of them at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: collections.OrderedDict[tuple, tuple[pyarrow.ChunkedArray, int]]
        self._groups = collections.OrderedDict()

    def value(self, path: Path, checked: Checked, group: int, row: int, key: str) -> str | None:
        known = (path, checked.stamp, group, key)
        with self._lock:
            if known not in self._groups:
                self._make_room(checked.groups[group][1])
                parts = [part.column(0) for part in _batches(path, checked, group, key)]
                self._groups[known] = pyarrow.chunked_array(parts), checked.groups[group][1]
            self._groups.move_to_end(known)
            values, _ = self._groups[known]
        return values[row].as_py()

    def _make_room(self, size: int) -> None:
        while self._groups and size + sum(taken for _, taken in self._groups.values()) > KEPT:
            self._groups.popitem(last=False)


class _Window:
    """The batch of a group that was read last; the group is read again for an earlier row."""

    def __init__(self, path: Path, checked: Checked, group: int, key: str):
        self._open = functools.partial(_batches, path, checked, group, key)
        self._lock = threading.Lock()
        self._batches: Iterator[pyarrow.RecordBatch] = iter(())
        self._first, self._values = 0, pyarrow.nulls(0)

    def value(self, row: int) -> str | None:
        with self._lock:
            if row < self._first or not len(self._values):
                self._batches, self._first, self._values = self._open(), 0, pyarrow.nulls(0)
            while row >= self._first + len(self._values):
                self._first += len(self._values)
                self._values = next(self._batches).column(0)
            return self._values[row - self._first].as_py()


_groups = _Groups()


def parquet_value(path: Path, checked: Checked, group: int, row: int, key: str) -> str | None:
    """A value of a Parquet file by its group of rows and its row there."""
    if checked.groups[group][1] <= KEPT:
        return _groups.value(path, checked, group, row, key)
    return _window(path, checked, group, key).value(row)


def arrow_value(path: Path, checked: Checked, group: int, row: int, key: str) -> str | None:
    """A value of a file of record batches, which is one group."""
    del group
    return _column(path, checked, key)[row].as_py()


@functools.lru_cache(maxsize=2)
def _window(path: Path, checked: Checked, group: int, key: str) -> _Window:
    return _Window(path, checked, group, key)


@functools.lru_cache(maxsize=1024)
def _column(path: Path, checked: Checked, key: str) -> pyarrow.ChunkedArray:
    _check_stamp(path, checked)
    return table_child.arrow_column(os.fspath(path), key)


def _batches(path: Path, checked: Checked, group: int, key: str) -> Iterator[pyarrow.RecordBatch]:
    _check_stamp(path, checked)
    return table_child.parquet_batches(os.fspath(path), group, key, checked.batch)


def _check_stamp(path: Path, checked: Checked) -> None:
    if stamp_of(path) != checked.stamp:
        raise UserError(f"{path} has changed since it was checked; start again")
