"""Text files read one document at a time. Messages about bad ones: test_documents.py."""

import json

import pytest

from fqs_jax.data.sources import text_files
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
    lines = text_files.open_json_lines(path, "text", options)
    assert len(lines) == 100 and [lines[i] for i in (99, 0)] == ["été 99", "été 0"]
    monkeypatch.setattr(text_files, "_line_offsets", None)  # not looked for again
    again = text_files.open_json_lines(path, "text", options)
    assert [again[i] for i in range(100)] == [f"été {i}" for i in range(100)]
    assert [file.suffix for file in cached(options)] == ["", ".npy"]


def test_a_changed_file_is_looked_at_again(large):
    path, options = large
    text_files.open_json_lines(path, "text", options)
    with path.open("a") as file:
        file.write('\n{"text": "more"}\n{"no": 1}\n')
    with pytest.raises(UserError, match="large.jsonl:102: no key 'text'"):
        text_files.open_json_lines(path, "text", options)


def test_a_small_file_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    options = Options(cache=tmp_path / "cache")
    assert text_files.open_json_lines(tmp_path / "a.jsonl", "text", options)[0] == "x"
    assert cached(options) == []


def test_a_cache_that_cannot_be_written(large):
    path, options = large
    options.cache.write_text("in the way")
    with pytest.raises(
        UserError, match="cannot write .*; set data.cache_dir to a folder with room"
    ):
        text_files.open_json_lines(path, "text", options)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "y"}\n')
    lines = text_files.open_json_lines(path, "text", Options())
    path.write_text('{"longer text": "x"}\n')
    with pytest.raises(UserError, match="a.jsonl, byte 14: not JSON"):
        lines[1]
    path.unlink()
    with pytest.raises(UserError, match="a.jsonl: No such file"):
        lines[0]
    with pytest.raises(UserError, match="b.txt: No such file"):
        text_files.TextFiles((tmp_path / "b.txt",))[0]
