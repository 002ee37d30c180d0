"""Files from outside: regular ones only, of bounded size, and one line on error."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

READERS = [
    inputs.check_file,
    inputs.open_file,
    inputs.read_bytes,
    inputs.read_text,
    inputs.read_json,
]


@pytest.fixture
def special(tmp_path):
    """Each kind of file that must not be read, by the words that name it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    place = tempfile.mkdtemp()  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{place}/s")
        yield {
            "a named pipe": tmp_path / "pipe",
            "a device": tmp_path / "zero",
            "a folder": tmp_path / "folder",
            "a socket": Path(place, "s"),
            "no such file": tmp_path / "missing",
            "cannot read": tmp_path / "loop",
        }


@pytest.mark.parametrize("read", READERS)
def test_special_files_are_refused_at_once(special, read):
    for kind, path in special.items():
        with pytest.raises(UserError, match=kind):
            read(path)


@pytest.mark.parametrize("read", READERS[2:])
def test_size_is_bounded(tmp_path, read):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    read(path, 8)
    with pytest.raises(UserError, match="a.json is larger than 0 MiB"):
        read(path, 7)


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "config.json").symlink_to("blob")
    assert inputs.read_json(tmp_path / "config.json") == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": 1}\0\0', "not valid JSON"),
        (b"[1]", "should hold a JSON object, found a list"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_json_that_is_none(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        inputs.read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "b"}')
    assert inputs.read_json(path) == {"a": "b"}
    assert inputs.read_text(path) == '{"a": "b"}'


@given(st.binary())
def test_any_bytes_are_read_or_refused(content):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "a.json")
        path.write_bytes(content)
        for read in READERS[2:]:
            try:
                read(path)
            except UserError as error:
                assert "\n" not in str(error)


def test_names_are_shown_on_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a\\x1b\[2J\\nb") as caught:
        inputs.read_bytes(tmp_path / "a\x1b[2J\nb")
    assert "\x1b" not in str(caught.value)
