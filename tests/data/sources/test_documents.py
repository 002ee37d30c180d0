"""Reading documents: what comes back, and what is said when it cannot."""

import gzip
import json

import pytest

from fqs_jax.data.sources.documents import read_documents
from fqs_jax.runtime.errors import UserError


def error_of(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        read_documents(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_txt_is_one_document_and_jsonl_one_a_line_in_order_of_paths(tmp_path):
    (tmp_path / "c.txt").write_text("first\n\nstill first\n")
    write_jsonl(tmp_path / "a.jsonl", {"text": "one", "meta": 1}, {"text": "two"})
    (tmp_path / "b.TXT").write_text("capital suffix")
    expected = ["one", "two", "capital suffix", "first\n\nstill first\n"]
    assert read_documents(f"{tmp_path}/c.txt, {tmp_path}/*.TXT,{tmp_path}/a.jsonl") == expected
    assert read_documents([f"{tmp_path}/*"]) == expected
    assert read_documents([f"{tmp_path}/*", f"{tmp_path}/c.txt"]) == expected  # each file once


def test_globs_span_folders_and_skip_them(tmp_path):
    (tmp_path / "x" / "y.txt").mkdir(parents=True)
    (tmp_path / "x" / "z.txt").write_text("deep")
    (tmp_path / "top.txt").write_text("top")
    assert read_documents(f"{tmp_path}/**/*.txt") == ["top", "deep"]


def test_an_existing_file_is_meant_literally(tmp_path):
    (tmp_path / "part[1].txt").write_text("literal")
    (tmp_path / "part1.txt").write_text("glob")
    (tmp_path / "a,b.txt").write_text("comma")
    assert read_documents(f"{tmp_path}/part[1].txt") == ["literal"]
    assert read_documents([f"{tmp_path}/a,b.txt"]) == ["comma"]


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("home")
    assert read_documents("~/a.txt") == ["home"]


def test_byte_order_marks_and_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x\\r\\ny"}\r\n')
    assert read_documents(f"{tmp_path}/*") == ["one\ntwo\nthree\n", "x\r\ny"]


def test_jsonl_lines_end_at_newlines_only(tmp_path):
    text = "before\u2028after\u0085end\x0c"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False))
    assert read_documents(f"{tmp_path}/a.jsonl") == [text]


def test_blank_documents_and_lines_are_left_out(tmp_path):
    lines = ["", '{"text": " \\n"}', "  ", '{"text": null}', '{"text": "kept"}', "", ""]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text(" \n\t")
    assert read_documents(f"{tmp_path}/*") == ["kept"]


def test_another_key(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"question": "why?", "text": "no"})
    assert read_documents(path, key="question") == ["why?"]


def test_half_the_world_in_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve 数 🙂".encode())
    write_jsonl(tmp_path / "b.jsonl", {"text": "🙂"})  # written as a pair of surrogate escapes
    assert read_documents(f"{tmp_path}/*") == ["naïve 数 🙂", "🙂"]


def test_nothing_matches(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    message = error_of([f"{tmp_path}/a.txt", f"{tmp_path}/none*.txt"])
    assert f"no file matches {tmp_path}/none*.txt" in message


@pytest.mark.parametrize("patterns", ["", " , ", []])
def test_no_names(patterns):
    assert "no text was named" in error_of(patterns)


def test_other_kinds_of_files(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "noend").write_text("x")
    assert f"{tmp_path}/a.csv: not a file of text" in error_of(f"{tmp_path}/*.csv")
    assert "noend: not a file of text" in error_of(f"{tmp_path}/noend")
    assert f"name its files, for example {tmp_path}/*.txt" in error_of(f"{tmp_path}/")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_not_utf8_names_the_byte_in_the_file(tmp_path, bom):
    (tmp_path / "a.txt").write_bytes(bom + b"caf\xe9")
    assert f"a.txt: not UTF-8 at byte {len(bom) + 3}; convert it" in error_of(f"{tmp_path}/*")
    lines = bom + b'{"text": "ok"}\n{"text": "caf\xe9"}\n'
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.jsonl").write_bytes(lines)
    message = error_of(f"{tmp_path}/*")
    assert f"b.jsonl: not UTF-8 at byte {lines.index(0xE9)}; convert it" in message
    assert "iconv -f LATIN1 -t UTF-8" in message


def test_utf16_is_recognised(tmp_path):
    (tmp_path / "a.txt").write_text("hello", encoding="utf-16")
    assert "iconv -f UTF-16 -t UTF-8" in error_of(f"{tmp_path}/a.txt")


def test_a_compressed_file_is_recognised(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"text": "hello"}'))
    assert "a.jsonl: compressed; unpack it first" in error_of(f"{tmp_path}/a.jsonl")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"', "not JSON (Expecting ',' delimiter)"),
        ("plain words", "not JSON (Expecting value)"),
        ('{"text": ' + "9" * 5000 + "}", "not JSON (Exceeds the limit"),
        ('["text"]', "a list, but each line must hold an object"),
        ('"text"', "a string, but each line must hold an object"),
        (
            '{"body": "a", "id": 3}',
            "no key 'text'; name the one with the text (seen: 'body', 'id')",
        ),
        ("{}", "no key 'text'; name the one with the text (seen: none)"),
        ('{"text": []}', "'text' holds a list; it must hold a string"),
        ('{"text": 3}', "'text' holds a number; it must hold a string"),
        ('{"text": true}', "'text' holds a boolean"),
        ('{"text": "ab\\ud83d"}', "half a surrogate pair at character 2 of 'text'"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n')
    message = error_of(str(path))
    assert message.startswith(f"{path}:3: ")
    assert said in message


def test_nothing_but_blanks(tmp_path):
    (tmp_path / "a.txt").write_text(" ")
    (tmp_path / "b.jsonl").write_text("")
    assert f"{tmp_path}/a.txt and 1 more: nothing but blanks" in error_of(f"{tmp_path}/*")
    assert f"{tmp_path}/b.jsonl: nothing but blanks" in error_of(f"{tmp_path}/b*")


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    assert f"{tmp_path}/a.txt: No such file or directory; check the name" in error_of(
        f"{tmp_path}/*.txt"
    )


def test_documents_are_sorted_by_the_whole_path(tmp_path):
    names = ["a-1.txt", "a.txt", "a/b.txt", "b.txt"]
    (tmp_path / "a").mkdir()
    for name in names:
        (tmp_path / name).write_text(name)
    found = read_documents([f"{tmp_path}/b.txt", f"{tmp_path}/**/a*.txt", f"{tmp_path}/a/*"])
    assert found == names


def test_weights_are_for_training(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    assert "weights are for training" in error_of(f"{tmp_path}/a.txt@1,{tmp_path}/b.txt@2")


def test_real_text(shared):
    math = read_documents(str(shared / "real/text/stacks_project_part.jsonl"))
    assert len(math) == 821
    stories = shared / "real/text"
    assert len(read_documents(f"{stories}/tinystories_*.txt")) == len(
        list(stories.glob("tinystories_*.txt"))
    )
