"""Files that may be replaced, and those that may not."""

import os
import socket

import pytest

from fqs_jax.runtime import files, outputs
from fqs_jax.runtime.errors import UserError


def is_ours(start: bytes, end: bytes) -> bool:
    return start.startswith(b"ours") and end.endswith(b"end")


def check(path):
    outputs.check_ours(path, is_ours, "report", "--out")


def test_new_files_empty_ones_and_ours(tmp_path):
    path = tmp_path / "a"
    check(path)
    path.touch()
    check(path)
    path.write_text("ours" + 200_000 * "x" + "end")
    check(path)


@pytest.mark.parametrize("content", ["theirs", "ours", "end", '{"step": 1}\n'])
def test_what_is_not_ours_stays(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="exists already and is no report; name another .* --out"):
        check(path)
    assert path.read_text() == content


@pytest.mark.parametrize("kind", ["link", "broken link", "folder", "device", "pipe", "socket"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "link":
        (tmp_path / "target").write_text("ours end")
        path.symlink_to(tmp_path / "target")
    elif kind == "broken link":
        path.symlink_to(tmp_path / "none")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path = path.with_name("null")
        path = type(path)("/dev/null")
    for write in (check, lambda path: files.write_text(path, "new")):
        with pytest.raises(
            UserError, match=f"is a {kind.split()[-1].replace('pipe', 'named pipe')}"
        ):
            write(path)
    assert os.path.lexists(path) and [p.name for p in tmp_path.glob(".*")] == []
