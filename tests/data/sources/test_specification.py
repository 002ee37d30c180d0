"""Specifications of sources: what they name, their weights and keys, and what is refused."""

import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from fqs_jax.data.sources import specification
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import Concatenation, Documents, fingerprint, open_sources
from fqs_jax.runtime.errors import UserError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text of two or three documents of each kind, as the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a txt")
    (tmp_path / "b.txt").write_text("b txt")
    lines = [
        {"text": "line 1", "body": "body 1"},
        {"text": " ", "body": " "},
        {"text": "line 2", "body": ""},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = pyarrow.table({"text": ["row 1", None, "row 3"], "number": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    return tmp_path


def texts(names, **options):
    return [([source[i] for i in range(len(source))], weight) for source, weight in
            open_sources(names, Options(**options))]  # fmt: skip


def error_of(names, **options):
    with pytest.raises(UserError) as caught:
        texts(names, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_weights_all_parts_are_one_source_in_the_order_of_paths(place):
    rows = ["row 1", "", "row 3"]
    expected = ["a txt", "b txt", "line 1", "line 2", *rows]
    assert texts("d.parquet, *.txt,c.jsonl,a.txt") == [(expected, 1)]


def test_with_weights_each_part_is_a_source(place):
    assert texts("c.jsonl@0.5, *.txt@1.25") == [(["line 1", "line 2"], 2), (["a txt", "b txt"], 5)]
    assert texts("c.jsonl@7,c.jsonl@3") == [(["line 1", "line 2"], 7), (["line 1", "line 2"], 3)]
    assert [weight for _, weight in texts("a.txt@0.1,b.txt@0.2,c.jsonl@0.7")] == [1, 2, 7]  # exact
    assert texts("a.txt@2e-1") == [(["a txt"], 1)]


def test_a_part_may_name_its_own_key(place):
    assert texts("a.txt,c.jsonl#body") == [(["a txt", "body 1"], 1)]
    assert texts("a.txt@1,c.jsonl#body@2") == [(["a txt"], 1), (["body 1"], 2)]
    assert texts("c.jsonl", key="body") == [(["body 1"], 1)]


def test_names_that_exist_are_meant_literally(place):
    for name in ("e@0.5.txt", "f#g.txt", "h.txt@3", "tfds:x.txt"):
        (place / name).write_text(name)
    assert texts("e@0.5.txt,f#g.txt")[0][0] == ["e@0.5.txt", "f#g.txt"]
    assert "not a file of text" in error_of("h.txt@3")  # no weight: a file of another kind


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("a.txt@-1", "a.txt: the weight is -1; set it above 0, or leave it out"),
        ("a.txt@0", "a.txt: the weight is 0; set it above 0"),
        ("a.txt@1,b.txt", "b.txt has no weight but others do; give all of them one, or none"),
        ("a.txt@.", "'.' is no weight"),
        ("a.txt@1.2.3", "'1.2.3' is no weight"),
        ("a.txt@nan,b.txt@1", "a.txt: the weight is nan; set it from 1e-09 to 1e+09"),
        ("a.txt@inf", "a.txt: the weight is inf; set it from 1e-09 to 1e+09"),
        ("a.txt@-Infinity", "a.txt: the weight is -Infinity; set it above 0"),
        ("a.txt@1e999999999", "a.txt: the weight is 1e999999999; set it from"),
        ("a.txt@1E-99", "a.txt: the weight is 1E-99; set it from"),
        ("a.txt@" + "9" * 5000, "9; set it from 1e-09 to 1e+09"),
        ("az://bucket/a.txt", "az://bucket/a.txt is an address"),
        ("a.txt@1,S3://bucket/a.jsonl@2", "S3://bucket/a.jsonl is an address"),
        ("file:///a.txt#text", "give the path alone"),
        ("tfds:s3://bucket/set", "s3://bucket/set is an address"),
        ("hf://datasets/a/b", "download it first"),
        ("x" * 5000 + ".txt", "no file matches xxx"),
        ("a\0b.txt", "has a NUL character"),
        ("~no_such_user/a.txt", "there is no home folder of '~no_such_user'"),
        ("a.txt@half", "no file matches a.txt@half"),
        ("gone.parquet", "no file matches gone.parquet"),
        (
            "d.parquet#nothing",
            "no column 'nothing'; name the one with the text (seen: 'text', 'number')",
        ),
        ("d.parquet#number", "column 'number' holds int64; it must hold strings"),
        ("c.jsonl#nothing", "c.jsonl:1: no key 'nothing'"),
        ("tfds:", "the name of the dataset is missing; write it as tfds:NAME[:SPLIT]"),
        ("hub:", "the name of the dataset is missing; write it as hub:NAME[:SPLIT]"),
        (".", ". is a folder; name its files"),
        ("gone:train", "no file matches gone:train"),
    ],
)
def test_what_is_refused(place, names, said):
    assert said in error_of(names)


def test_sources_can_be_pickled(place):
    [(source, _)] = open_sources("a.txt,c.jsonl,d.parquet", Options())
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(len(copy))] == [
        "a txt",
        "line 1",
        "line 2",
        "row 1",
        "",
        "row 3",
    ]


def test_concatenation():
    source = Concatenation([Documents(["a"]), Documents([]), Documents(["b", "c"])])
    assert len(source) == 3 and list(source) == ["a", "b", "c"]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]
    assert len(Concatenation([])) == 0


def test_fingerprints_follow_the_text_and_not_its_place(place, monkeypatch):
    def of(names, **options):
        return fingerprint(open_sources(names, Options(**options))[0][0])

    first = of("c.jsonl")
    (place / "moved").mkdir()
    (place / "c.jsonl").rename(place / "moved" / "d.jsonl")
    assert of("moved/d.jsonl") == first != of("moved/d.jsonl#body")
    text = (place / "moved" / "d.jsonl").read_text()
    monkeypatch.setattr(specification, "_SAMPLE", 16)
    for whole in (specification._WHOLE, 0):  # small files, and those of which a sample is read
        monkeypatch.setattr(specification, "_WHOLE", whole)
        before = of("moved/d.jsonl")
        (place / "moved" / "d.jsonl").write_text(text.replace("line 2", "line 3"))
        assert of("moved/d.jsonl") != before
        (place / "moved" / "d.jsonl").write_text(text)
        assert of("moved/d.jsonl") == before
    assert fingerprint(Documents(["a"])) != fingerprint(Documents(["b"]))
