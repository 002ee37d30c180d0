"""Parquet files and folders saved by Hugging Face datasets, whole and damaged."""

import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import open_sources
from fqs_jax.data.sources.tables import open_parquet, open_saved_dataset
from fqs_jax.runtime.errors import UserError

TEXTS = [f"document {i} " * 20 for i in range(250)]


def table(texts, kind=None):
    return pyarrow.table({"text": pyarrow.array(texts, kind or pyarrow.string())})


def save_to_disk(folder, parts, new=pyarrow.ipc.new_stream):
    """The files that datasets.Dataset.save_to_disk writes."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with new(str(folder / name), part.schema) as writer:
            writer.write_table(part, max_chunksize=7)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def save_splits(folder, **splits):
    for name, texts in splits.items():
        save_to_disk(folder / name, [table(texts)])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def all_of(name):
    [(source, _)] = open_sources(str(name), Options())
    return [source[i] for i in range(len(source))]


def error_of(name):
    with pytest.raises(UserError) as caught:
        all_of(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet_in_groups_of_rows(tmp_path, kind):
    pyarrow.parquet.write_table(table(TEXTS, kind), tmp_path / "a.parquet", row_group_size=16)
    [source] = open_parquet([tmp_path / "a.parquet"], "text", Options())
    assert len(source) == 250 and source[249] == TEXTS[249]
    assert [source[i] for i in reversed(range(250))] == TEXTS[::-1]
    assert pickle.loads(pickle.dumps(source))[100] == TEXTS[100]


def test_an_empty_parquet_file(tmp_path):
    pyarrow.parquet.write_table(table([]), tmp_path / "a.parquet")
    assert [len(t) for t in open_parquet([tmp_path / "a.parquet"], "text", Options())] == [0]
    assert "a.parquet: nothing but blanks" in error_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("new", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_a_saved_dataset(tmp_path, new):
    folder = save_to_disk(tmp_path / "saved", [table(TEXTS[:100]), table(TEXTS[100:])], new)
    assert all_of(folder) == TEXTS
    [first, second] = open_saved_dataset(folder, "", "text", Options())
    assert pickle.loads(pickle.dumps(second))[0] == TEXTS[100] and len(first) == 100


def test_saved_splits(tmp_path):
    folder = save_splits(tmp_path / "saved", train=["a", "b"], test=["c"])
    assert all_of(f"{folder}:train") == ["a", "b"] and all_of(f"{folder}:test") == ["c"]
    assert "several splits; name one of train, test as" in error_of(folder)
    assert "no split 'dev'; name one of train, test as" in error_of(f"{folder}:dev")
    assert all_of(save_splits(tmp_path / "one", train=["a"])) == ["a"]


def test_saved_datasets_that_are_not_whole(tmp_path):
    folder = save_to_disk(tmp_path / "saved", [table(TEXTS)])
    assert "one dataset without splits; leave out :train" in error_of(f"{folder}:train")
    assert "no column 'body'" in error_of(f"{folder}#body")
    [arrow] = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    assert f"{arrow}: damaged or of another kind" in error_of(folder)
    arrow.unlink()
    assert f"{arrow}: No such file or directory" in error_of(folder)
    (folder / "state.json").write_text('{"_data_files": 3}')
    assert "state.json: no list '_data_files'" in error_of(folder)
    (folder / "state.json").write_text('{"_indices_data_files": [{}], "_data_files": []}')
    assert "holds a selection of rows; save it after flatten_indices()" in error_of(folder)


def test_damaged_parquet_files(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table(TEXTS), path, row_group_size=50)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "a.parquet: damaged or of another kind" in error_of(path)
    other = tmp_path / "b.parquet"
    other.write_bytes(content[:300] + bytes(100) + content[400:])
    assert "b.parquet: damaged or of another kind" in error_of(other)
    other.write_bytes(b"")
    assert "b.parquet: damaged or of another kind" in error_of(other)
