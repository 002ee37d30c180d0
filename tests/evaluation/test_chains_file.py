"""The file of chains of thought: what a kill has left of a last line goes, and damage is named."""

import concurrent.futures
import json
import math
import os
import time

import pytest

from fqs_jax.evaluation import chains_file
from fqs_jax.runtime.errors import UserError

LINES = [
    {"model": f"m{i}", "item": i, "text": "It is 5.\n\ud800\u00bd", "ended": True} for i in range(3)
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "chains.jsonl"
    chains_file.prepare(path)
    chains_file.append(path, LINES)
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_torn_last_line_is_dropped(path, capsys):
    """The file is cut at each byte of its last line; the next lines follow the whole ones."""
    content = path.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(content) + 1):
        for zeros in (0, 5):
            path.write_bytes(content[:end] + bytes(zeros))
            chains_file.prepare(path)
            chains_file.append(path, LINES[:1])
            whole = (
                3 if end >= len(content) - (not zeros) else 2
            )  # the newline alone may be missing
            assert lines_of(path) == LINES[:whole] + LINES[:1]
            torn = path.stat().st_size and (zeros or start < end < len(content) - 1)
            assert ("its last line was not whole" in capsys.readouterr().err) == bool(torn)


def test_a_file_with_a_part_of_its_first_line_begins_again(path, capsys):
    for content in (b"", b"{", b'{"mod', b'{"model": "a', bytes(9)):
        path.write_bytes(content)
        chains_file.prepare(path)
        chains_file.append(path, LINES)
        assert lines_of(path) == LINES


@pytest.mark.parametrize("bad", [b"{", b"[1]", b"", b"\0\0", b"\xff", b'"a"', b"[" * 100_000])
def test_a_damaged_line_is_named_and_nothing_is_lost(path, bad):
    lines = path.read_bytes().splitlines(keepends=True)
    content = b"".join([lines[0], bad + b"\n", *lines[1:]])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"chains.jsonl:2: damaged.*--chains_file") as caught:
        chains_file.prepare(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(UserError, match="is no file of chains"):
        chains_file.prepare(path)
    assert path.read_text() == "my notes"


def test_numbers_that_json_lacks_are_null(path):
    chains_file.append(path, [{"model": "m", "score": math.inf}])
    assert lines_of(path)[-1] == {"model": "m", "score": None}


def test_a_line_that_another_process_left_torn_is_dropped_when_lines_follow(path, capsys):
    content = path.read_bytes()
    path.write_bytes(content + b'{"model": "killed')
    chains_file.append(path, LINES[:1])
    assert lines_of(path) == LINES + LINES[:1]
    assert "its last line was not whole" in capsys.readouterr().err
    path.write_bytes(content[:-1])  # whole, but for its newline
    chains_file.append(path, LINES[:1])
    assert lines_of(path) == LINES + LINES[:1]


def test_evaluations_that_append_at_once_lose_nothing(path, monkeypatch, capsys):
    """The system takes a line in many pieces, so that without a lock others would meet a part of one."""
    write = os.write

    def write_a_piece(file, content):
        written = write(file, content[:500])
        time.sleep(0.0005)
        return written

    def evaluate(name):
        chains_file.prepare(path)
        for item in range(3):  # a model each
            chains_file.append(path, [{"model": name, "item": item, "text": name * 3000}] * 2)

    path.write_bytes(b"")
    monkeypatch.setattr(os, "write", write_a_piece)
    names = ["one", "two", "three", "four"]
    with concurrent.futures.ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(evaluate, names))
    found = [(line["model"], line["item"]) for line in lines_of(path)]
    assert sorted(found) == sorted((name, item) for name in names for item in (0, 0, 1, 1, 2, 2))
    assert found[::2] == found[1::2]  # the lines of a model stay together
    assert not capsys.readouterr().err
