"""Tables that are broken, huge, or of every string type."""

import functools
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_changes, fuzz_inputs
from fqs_jax.data.sources import table_cache, table_check, table_child
from fqs_jax.data.sources.documents import read_documents
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import open_sources
from fqs_jax.data.sources.tables import open_parquet
from fqs_jax.runtime.errors import UserError

STRING = pyarrow.string()
TEXTS = ["one", None, "", "två", "one", "three " * 9]
TYPES = [
    *(STRING, pyarrow.large_string(), pyarrow.string_view()),
    *(pyarrow.dictionary(pyarrow.int32(), kind) for kind in (STRING, pyarrow.large_string())),
    pyarrow.dictionary(pyarrow.int8(), STRING, ordered=True),
]


def error_of(*args):
    with pytest.raises(UserError) as caught:
        read_documents(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path, texts, kind=STRING, **options):
    column = pyarrow.array(texts, STRING).cast(kind)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, **options)
    return path


def saved(folder, name="data.arrow"):
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    return folder / name


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_all_types_of_strings_are_the_same_documents(tmp_path, kind):
    path = write(tmp_path / "a.parquet", TEXTS, kind)
    [source] = open_parquet([path], "text", Options())
    assert [source[i] for i in range(len(source))] == [text or "" for text in TEXTS]
    arrow = saved(tmp_path / "saved")
    table = pyarrow.table({"text": pyarrow.array(TEXTS, STRING).cast(kind)})
    with pyarrow.ipc.new_stream(str(arrow), table.schema) as writer:
        writer.write_table(table)
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    whole = [text for text in TEXTS if text]
    assert read_documents(str(path)) == read_documents(str(arrow.parent)) == whole
    assert read_documents(str(lines)) == whole  # null is blank here too


def test_a_pandas_category_and_a_column_of_nulls(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": pandas.Categorical(["a", "b", None, "a"])})
    frame.to_parquet(tmp_path / "a.parquet")
    assert read_documents(str(tmp_path / "a.parquet")) == ["a", "b", "a"]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.nulls(3)}), tmp_path / "null.parquet"
    )
    assert "nothing but blanks" in error_of(str(tmp_path / "null.parquet"))


def test_broken_files_end_in_a_line_or_are_read(tmp_path, monkeypatch):
    """Files with strings kept in every way, broken at random; this process survives all of them."""
    child = table_check.Child()

    class Kept:
        __enter__, __exit__ = lambda _: child, lambda *_: None

    monkeypatch.setattr(table_check, "Child", Kept)
    targets = [one for one in fuzz_inputs.TARGETS["data"] if one.read is fuzz_inputs.read_table]
    whole = []
    for number, target in enumerate(targets):
        target.make(tmp_path / str(number))
        target.read(tmp_path / str(number))
        whole.append({path: path.read_bytes() for path in (tmp_path / str(number)).glob("a.*")})
    ends, times = [], []

    @settings(max_examples=200)
    @given(st.integers(0, len(targets) - 1), fuzz_changes.changes())
    def read(number, changes):
        [(path, content)] = whole[number].items()
        for change in changes:
            content = fuzz_changes.apply(content, change)
        path.write_bytes(content)
        times.append(len(times))  # a change within one tick of the clock is a change too
        os.utime(path, (1_000_000_000 + len(times),) * 2)
        try:
            targets[number].read(path.parent)
        except UserError as error:
            ends.append(str(error).splitlines())

    try:
        read()
    finally:
        child.__exit__()
    assert len(targets) == 15 and len(ends) > 20 and all(len(lines) == 1 for lines in ends)


def test_a_file_that_crashes_arrow_is_one_line(tmp_path, monkeypatch):
    script = tmp_path / "crash.py"
    script.write_text("import os, signal\ninput()\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(table_child, "__file__", str(script))
    path = write(tmp_path / "a.parquet", TEXTS)
    assert f"{path}: damaged or of another kind (reading it crashes Arrow)" in error_of(str(path))


def test_the_child_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "pyarrow.py").write_text("open('marker', 'w')\n")
    (tmp_path / "json.py").write_text("open('marker', 'w')\n")
    write(tmp_path / "a.parquet", TEXTS)
    monkeypatch.chdir(tmp_path)
    assert len(read_documents("a.parquet")) == 4
    assert not (tmp_path / "marker").exists()


def test_small_files_cannot_fill_the_memory(tmp_path, monkeypatch):
    """A child that takes much memory is refused; this process takes none."""
    path = write(tmp_path / "one.parquet", ["word " * 14_000_000], compression="zstd")
    assert "one.parquet: a document has more than 64 MiB; divide it" in error_of(str(path))
    path = write(tmp_path / "repeated.parquet", ["word " * 1000] * 2000)
    monkeypatch.setattr(table_child, "GROWTH_FREE", 1 << 20)
    found = table_child._answer("parquet", str(path), "text", 1 << 20)
    assert "bytes unpack to more than" in found["refused"]


def test_large_groups_are_read_in_batches(tmp_path, monkeypatch):
    texts = [f"text {i} " * 30 for i in range(500)]
    path = write(tmp_path / "a.parquet", texts)
    monkeypatch.setattr(table_cache, "KEPT", 100)
    monkeypatch.setattr(
        table_cache, "_batches", functools.partial(_in_batches_of, 7, table_cache._batches)
    )
    [source] = open_parquet([path], "text", Options())
    order = [*range(500), 3, 400, 399, 499, 0]
    assert [source[i] for i in order] == [texts[i] for i in order]


def _in_batches_of(size, read, path, checked, group, key):
    for batch in read(path, checked, group, key):
        yield from (batch.slice(first, size) for first in range(0, len(batch), size))


def test_results_of_large_files_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(table_check, "LARGE", 0)
    path, options = write(tmp_path / "a.parquet", TEXTS), Options(cache=tmp_path / "cache")

    def read():
        table_check._passed.clear()
        return len(open_sources(str(path), options)[0][0])

    assert read() == 6
    [kept] = (tmp_path / "cache" / "tables").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(table_check.Child, "ask", None)  # no child is needed
        assert read() == 6
    for broken in (b"", b"[]", b'{"stamp": 3}', b"\xff", b'{"groups": [[1]]}', b"[" * 100_000):
        kept.write_bytes(broken)
        assert read() == 6
    kept.unlink()
    os.mkfifo(kept)
    assert read() == 6


def test_a_file_that_changes_after_its_check_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", TEXTS)
    [source] = open_parquet([path], "text", Options())
    write(path, [*TEXTS, "more"])
    with pytest.raises(UserError, match="a.parquet has changed since it was checked; start again"):
        source[0]


@pytest.mark.parametrize(
    "name", ["../a.arrow", "/etc/x.arrow", 5, None, ["a"], {}, "", "..", "a/b.arrow", "a\0b", True]
)
def test_saved_datasets_name_files_of_their_folder(tmp_path, name):
    folder = saved(tmp_path / "saved", "x").parent
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    said = "no name of a file of this folder; save the dataset again"
    assert said in error_of(str(folder))
    (folder / "state.json").write_text(json.dumps({"_data_files": [name]}))
    assert said in error_of(str(folder))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    assert said in error_of(str(folder))


def test_special_files_and_names_that_are_not_utf8(tmp_path):
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "pipe.parquet is a named pipe, not a file" in error_of(str(tmp_path / "pipe.parquet"))
    os.mkfifo(saved(tmp_path / "saved"))
    assert "data.arrow is a named pipe, not a file" in error_of(str(tmp_path / "saved"))
    odd = tmp_path / os.fsdecode(b"caf\xe9.parquet")
    write(tmp_path / "a.parquet", ["text"]).rename(odd)
    assert read_documents([str(odd)]) == ["text"]
