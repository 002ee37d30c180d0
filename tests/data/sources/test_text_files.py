"""Text files read one document at a time. Messages about bad ones: test_documents.py."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.sources import text_files
from fqs_jax.data.sources.documents import read_documents
from fqs_jax.data.sources.options import Options
from fqs_jax.runtime.errors import UserError


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file for which the cache is used."""
    monkeypatch.setattr(text_files, "LARGE", 100)
    path = tmp_path / "large.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"été {i}"}) for i in range(100)))
    return path, Options(cache=tmp_path / "cache")


def cached(options):
    return sorted(options.cache.rglob("*"))


def test_lines_of_a_large_file_are_remembered(large, monkeypatch):
    path, options = large
    lines = text_files.open_json_lines(path, "text", options, text_files.text_of)
    assert len(lines) == 100 and [lines[i] for i in (99, 0)] == ["été 99", "été 0"]
    monkeypatch.setattr(text_files, "_line_offsets", None)  # not looked for again
    again = text_files.open_json_lines(path, "text", options, text_files.text_of)
    assert [again[i] for i in range(100)] == [f"été {i}" for i in range(100)]
    assert [file.suffix for file in cached(options)] == ["", ".npy"]


def test_a_changed_file_is_looked_at_again(large):
    path, options = large
    text_files.open_json_lines(path, "text", options, text_files.text_of)
    with path.open("a") as file:
        file.write('\n{"text": "more"}\n{"no": 1}\n')
    with pytest.raises(UserError, match="large.jsonl:102: no key 'text'"):
        text_files.open_json_lines(path, "text", options, text_files.text_of)


def test_a_small_file_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    options = Options(cache=tmp_path / "cache")
    assert (
        text_files.open_json_lines(tmp_path / "a.jsonl", "text", options, text_files.text_of)[0]
        == "x"
    )
    assert cached(options) == []


def test_a_cache_that_cannot_be_written(large):
    path, options = large
    options.cache.write_text("in the way")
    with pytest.raises(
        UserError, match="cannot write .*; set data.cache_dir to a folder with room"
    ):
        text_files.open_json_lines(path, "text", options, text_files.text_of)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "y"}\n')
    lines = text_files.open_json_lines(path, "text", Options(), text_files.text_of)
    path.write_text('{"longer text": "x"}\n')
    with pytest.raises(UserError, match="a.jsonl, byte 14: not JSON"):
        lines[1]
    path.unlink()
    with pytest.raises(UserError, match="a.jsonl: No such file"):
        lines[0]
    with pytest.raises(UserError, match="b.txt: No such file"):
        text_files.TextFiles((tmp_path / "b.txt",))[0]


def error_of(*names):
    with pytest.raises(UserError) as caught:
        read_documents(list(names))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".array_record"])
def test_special_files_are_refused(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    assert f"pipe{suffix} is a named pipe, not a file" in error_of(f"{tmp_path}/pipe*")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    assert f"zero{suffix} is a device, not a file" in error_of(f"{tmp_path}/zero*")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
def test_other_encodings_without_a_mark_are_refused(tmp_path, suffix, encoding):
    path = tmp_path / f"a{suffix}"
    path.write_bytes('{"text": "hello, this is a line"}\n{"text": "and more"}\n'.encode(encoding))
    assert f"convert it, for example: iconv -f {encoding} -t UTF-8" in error_of(str(path))


def test_binary_files_are_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(256)) * 20)
    assert "a.txt: not UTF-8 at byte 128; it is no text file, leave it out" in error_of(str(path))
    path.write_bytes(b"text\0more text")
    assert "a NUL at byte 4, which text does not have; it is no text file" in error_of(str(path))
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": "\\u0000 is a character of a string"}\n')
    assert read_documents(str(lines)) == ["\0 is a character of a string"]


def test_a_document_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_DOCUMENT", 1 << 20)
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("word " * (1 << 18))
    said = "of more than 1 MiB, the most that is read at once; divide it"
    assert f"a.txt is one document {said}" in error_of(str(text))
    lines.write_text('{"text": "fine"}\n' + json.dumps({"text": "word " * (1 << 18)}))
    assert f"b.jsonl:2 is one line {said}" in error_of(str(lines))


@pytest.mark.parametrize(
    "broken",
    [
        b"", b"garbage", b"\x93NUMPY", b"PK\x03\x04", np.zeros(100, np.int32), np.zeros((10, 10)),
        np.full(100, -5), np.arange(100)[::-1].copy(), np.full(3, 10**12), "pickled", "folder", "pipe",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999,), }\n",
    ],
    ids=str,
)  # fmt: skip
def test_broken_line_caches_are_made_anew(large, broken):
    path, options = large
    text_files.open_json_lines(path, "text", options, text_files.text_of)
    [_, cache] = cached(options)
    cache.unlink()
    if isinstance(broken, bytes):
        cache.write_bytes(broken)
    elif isinstance(broken, np.ndarray):
        with cache.open("wb") as file:
            np.save(file, broken)
    elif broken == "pickled":
        with cache.open("wb") as file:
            np.save(file, np.array([object()]), allow_pickle=True)
    else:
        os.mkfifo(cache) if broken == "pipe" else cache.mkdir()
        with pytest.raises(UserError, match=f"{cache.name} is a .*{broken}, not a file"):
            text_files.open_json_lines(path, "text", options, text_files.text_of)
        return
    lines = text_files.open_json_lines(path, "text", options, text_files.text_of)
    assert [lines[i] for i in (0, 99)] == ["été 0", "été 99"]
    assert np.load(cache).dtype == np.int64


@given(st.binary(max_size=60), st.sampled_from(["a.txt", "a.jsonl"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(data)
    try:
        assert all(isinstance(text, str) for text in read_documents(str(path)))
    except UserError as error:
        assert len(str(error).splitlines()) == 1


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_text('{"text": "x"}\n')
    assert read_documents([str(path)]) == ["x"]
    path.write_text("{")
    assert error_of(str(path)).isprintable()
