"""Broken Parquet and Arrow files: `python -m benchmarks.fuzz_data --files=5000`.

Small files of all column types are changed at random places and read as training reads them. Each must
give documents or one line of error. This process itself must survive, so the number of the files that
crashed it is 0 whenever the program ends.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import random
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
from absl import app, flags

from fqs_jax.data.sources import table_check, tables
from fqs_jax.data.sources.options import Options
from fqs_jax.runtime.errors import UserError

_FILES = flags.DEFINE_integer("files", 5000, "Number of files to try.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the changes.")

STRING = pyarrow.string()
TYPES = (
    STRING,
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.dictionary(pyarrow.int8(), STRING),
    pyarrow.null(),
)


def whole_files() -> list[tuple[str, bytes]]:
    """The contents of small files that are not broken, each with its kind."""
    found = []
    for kind in TYPES:
        texts = [None if i % 7 == 0 else f"text {i % 5} été " * (i % 9) for i in range(60)]
        column = pyarrow.array(texts).cast(kind) if kind != pyarrow.null() else pyarrow.nulls(60)
        table = pyarrow.table({"text": column, "n": range(60)})
        for new in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file):
            sink = pyarrow.BufferOutputStream()
            with new(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=20)
            found.append(("arrow", sink.getvalue().to_pybytes()))
        for compression in ("none", "snappy", "zstd"):
            sink = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(table, sink, row_group_size=25, compression=compression)
            found.append(("parquet", sink.getvalue().to_pybytes()))
    return found


def broken(content: bytes, rng: random.Random) -> bytes:
    """The content with a few changes: other bytes, numbers, parts cut out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(data))
        how = rng.randrange(6)
        if how == 0:
            data[place] = rng.randrange(256)
        elif how == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif how == 2:
            data[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"))
        elif how == 3:
            del data[place : place + rng.randrange(1, 9)]
        elif how == 4:
            data[place:place] = data[place : place + rng.randrange(1, 33)]
        elif len(data) > 64 and rng.random() < 0.2:
            del data[place:]
        data = data or bytearray(b"\0")
    return bytes(data)


def outcome(kind: str, content: bytes, folder: Path) -> str:
    """What reading a file ends in: "read", "refused" or "crashed its child process"."""
    if kind == "parquet":
        path = folder / "a.parquet"
    else:
        path = folder / "a.arrow"
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": path.name}]}))
    path.write_bytes(content)
    try:
        if kind == "parquet":
            found = tables.open_parquet([path], "text", Options(cache=folder / "cache"))
        else:
            found = tables.open_saved_dataset(folder, "", "text", Options(cache=folder / "cache"))
        for table in found:
            for row in range(len(table)):
                table[row].encode()
    except UserError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"more than one line: {error}") from error
        return "crashed its child process" if "crashes Arrow" in str(error) else "refused"
    return "read"


def main(_: list[str]) -> None:
    child = table_check.Child()  # one for all files, which would otherwise be started for each
    table_check.Child = functools.partial(contextlib.nullcontext, child)  # type: ignore[assignment, misc]
    rng = random.Random(_SEED.value)
    files = whole_files()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for kind, content in files:
            assert outcome(kind, content, Path(name)) == "read"
        for _number in range(_FILES.value):
            kind, content = rng.choice(files)
            counts[kind, outcome(kind, broken(content, rng), Path(name))] += 1
        child.__exit__()
    for (kind, end), count in sorted(counts.items()):
        print(f"{kind:8} {end:26} {count:6}")
    print(f"{_FILES.value} files in {time.monotonic() - started:.0f} s; this process survived")


if __name__ == "__main__":
    app.run(main)
