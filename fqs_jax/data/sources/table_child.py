"""Checks of Parquet and Arrow files in a process of their own, which a broken file may crash.

`table_check` runs this file as a script; it needs pyarrow and the standard library only. Each line of
standard input is the JSON of [kind, file, column, bytes of a document at most], with column null for
all of them. Each line of standard output is the JSON of what was found:

    {"batch": 1024, "groups": [[rows, bytes], ..]}  every value can be read
    {"missing": ["title", ..]}                      no such column; these exist
    {"type": "int64"}                               the column does not hold strings
    {"refused": "..."}                              a file that is too large for its readers
    {"problem": "..."}                              a broken file, in the words of Arrow

Everything that the readers will touch is read here first, with the same calls, and validated.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

MEMORY = 5 << 28  # bytes that this process may allocate: 1.25 GiB
MOST_ROWS = 1 << 32
MOST_GROUPS = 1 << 20
BATCHES = (1 << 13, 64, 1)  # rows read at once; fewer if they are large
BATCH_BYTES = 1 << 26  # of a batch that has more than one row
GROWTH, GROWTH_FREE = 200, 1 << 30  # bytes of a column for each byte of its file, and more
MOST_RECORDS = 1 << 27  # bytes of all columns together, where all are read

Found = dict[str, Any]


class _Refused(Exception):
    """A whole file that the readers do not take."""


class _TooLarge(Exception):
    """A batch with too many bytes."""


def open_parquet(path: str) -> pyarrow.parquet.ParquetFile:
    """A Parquet file; its name need not be UTF-8."""
    return pyarrow.parquet.ParquetFile(pyarrow.OSFile(os.fsencode(path)), pre_buffer=False)


def parquet_batches(
    path: str, group: int, key: str | None, rows: int
) -> Iterator[pyarrow.RecordBatch]:
    """The batches of a group of rows, for one column or for all."""
    with open_parquet(path) as file:
        columns = None if key is None else [key]
        yield from file.iter_batches(rows, [group], columns, use_threads=False)


def arrow_column(path: str, key: str) -> pyarrow.ChunkedArray:
    """A column of a file of record batches: the stream format of `datasets`, or the file format.

    The file is mapped into memory and read page by page.
    """
    names = _open_arrow(path, None).schema.names
    options = pyarrow.ipc.IpcReadOptions(included_fields=[names.index(key)], use_threads=False)
    return _open_arrow(path, options).read_all().column(0)


def is_text(kind: pyarrow.DataType) -> bool:
    """True for strings in any layout: plain, large, views, and values that are stored once."""
    types = pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        return is_text(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return is_text(kind.value_type)
    plain = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(holds(kind) for holds in plain)


def _open_arrow(path: str, options: pyarrow.ipc.IpcReadOptions | None) -> Any:
    source = pyarrow.memory_map(os.fsencode(path))
    try:
        return pyarrow.ipc.open_stream(source, options=options)
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source, options=options)


def _check_parquet(path: str, key: str | None, most: int) -> Found:
    with open_parquet(path) as file:
        if key is not None and (problem := _column_problem(file.schema_arrow, key)):
            return problem
        if file.num_row_groups > MOST_GROUPS or file.metadata.num_rows > MOST_ROWS:
            raise _Refused("it has too many rows, or groups of rows")
    for batch in BATCHES:
        # The last number is tried whatever it takes: a row must be read whole.
        with contextlib.suppress(*([] if batch == 1 else [_TooLarge, MemoryError])):
            return {"batch": batch, "groups": list(_parquet_groups(path, key, batch, most))}
    raise AssertionError("unreachable: the last number returns or raises")


def _parquet_groups(path: str, key: str | None, batch: int, most: int) -> Iterator[tuple[int, int]]:
    with open_parquet(path) as file:
        listed = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    total = 0
    for group, expected in enumerate(listed):
        rows, before = 0, total
        for part in parquet_batches(path, group, key, batch):
            if batch > 1 and part.nbytes > BATCH_BYTES:
                raise _TooLarge
            rows += len(part)
            total += sum(_validate(column, most) for column in part.columns)
            _check_growth(total, path, key)
        if rows != expected:
            raise ValueError(f"{rows} rows where {expected} are listed")
        yield rows, total - before


def _check_arrow(path: str, key: str, most: int) -> Found:
    if problem := _column_problem(_open_arrow(path, None).schema, key):
        return problem
    try:
        column = arrow_column(path, key)
    except MemoryError:  # whole files are mapped, compressed ones are not
        raise _Refused("its columns are compressed; save it again without compression") from None
    if len(column) > MOST_ROWS:
        raise _Refused("it has too many rows")
    total = 0
    for part in column.chunks:
        total += _validate(part, most)
        _check_growth(total, path, key)
    return {"batch": 0, "groups": [[len(column), total]]}


def _column_problem(schema: pyarrow.Schema, key: str) -> Found | None:
    if key not in schema.names:
        return {"missing": schema.names[:100]}
    if schema.names.count(key) > 1:
        raise ValueError("several columns have that name")
    kind = schema.field(key).type
    return None if is_text(kind) else {"type": str(kind)}


def _validate(column: pyarrow.Array, most: int) -> int:
    """Check every value of an array; returns their bytes, in UTF-8 for strings."""
    column.validate(full=True)
    if column.null_count == len(column):
        return 0
    sizes = [_size(value.as_py()) for value in column]
    if max(sizes, default=0) > most:
        raise _Refused(f"a document has more than {most >> 20} MiB; divide it")
    return sum(sizes)


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    text = value if isinstance(value, str) else repr(value)
    return len(text) if text.isascii() else len(text.encode())


def _check_growth(total: int, path: str, key: str | None) -> None:
    size = os.path.getsize(path)
    if total > GROWTH_FREE + GROWTH * size:
        raise _Refused(f"its {size:,} bytes unpack to more than {total:,}; write it again")
    if key is None and total > MOST_RECORDS:
        raise _Refused(f"it has more than {MOST_RECORDS >> 20} MiB, too much to be read whole")


def _limit_memory() -> None:
    """Let large allocations fail. Files that are mapped into memory do not count."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(kind: str, path: str, key: str | None, most: int) -> Found:
    try:
        if kind == "arrow":
            return _check_arrow(path, str(key), most)
        return _check_parquet(path, key, most)
    except _Refused as error:
        return {"refused": str(error)}
    except MemoryError:
        return {
            "refused": f"reading a part takes more than {MEMORY >> 20} MiB; write smaller row groups"
        }
    except Exception as error:  # whatever Arrow and Python raise for broken content
        return {"problem": str(error) or type(error).__name__}


def main() -> None:
    """Answer every request of standard input."""
    _limit_memory()
    pyarrow.set_cpu_count(1)
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
