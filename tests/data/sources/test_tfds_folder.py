"""Folders of TFDS datasets that would run code, lead elsewhere, or are malformed."""

import copy
import json
import os
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.sources import tfds_folder
from fqs_jax.data.sources.documents import read_documents
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import Documents, open_sources
from fqs_jax.data.sources.tfds_writer import build_dataset
from fqs_jax.evaluation.tasks import records
from fqs_jax.runtime.errors import UserError

TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("tfds") / "prepared"
    build_dataset(Documents([f"document {i}" for i in range(9)]), out, "prepared", 0.0)
    return out


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "prepared")


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A module in reach of an import that leaves a marker."""
    (tmp_path / "evil").mkdir()
    marker = tmp_path / "marker"
    (tmp_path / "evil" / "payload.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "evil.payload.Evil"
    assert not marker.exists() and "evil.payload" not in sys.modules


def change(folder, file, /, **fields):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def error_of(name, **options):
    with pytest.raises(UserError) as caught:
        read_documents(str(name), options=Options(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def features_of(**features):
    return {"pythonClassName": DICT, "featuresDict": {"features": features}}


def test_no_class_of_features_json_is_imported(folder, payload):
    evil = {"pythonClassName": payload, "text": {}}
    nested = {"pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence"}
    said = "features.json: the features must be a FeaturesDict of TFDS"
    for name, content in {
        "top": {"pythonClassName": payload, "featuresDict": {"features": {"text": TEXT}}},
        "legacy": {"type": payload, "content": {"text": TEXT}},
        "snake": {"python_class_name": payload, "features_dict": {"features": {"text": TEXT}}},
        "submodule": features_of(text=TEXT)
        | {"pythonClassName": f"tensorflow_datasets.core.features.{payload}"},
    }.items():
        (folder / "features.json").write_text(json.dumps(content))
        assert said in error_of(folder), name
    for other in (evil, nested | {"sequence": {"feature": evil}}, {"type": payload, "content": {}}):
        (folder / "features.json").write_text(json.dumps(features_of(text=TEXT, other=other)))
        assert len(read_documents(str(folder))) == 9  # only the text is read
        found = records.read(f"tfds:{folder}:train", "text", Options())
        assert found[0][1] == {"text": "document 0"}
        (folder / "features.json").write_text(json.dumps(features_of(text=other)))
        assert "no text feature 'text'" in error_of(folder)


def test_no_class_of_dataset_info_is_imported(folder, payload):
    evil = {"pythonClassName": payload, "text": {}}
    change(folder, "dataset_info.json", features=evil, moduleName="evil.payload")
    assert len(read_documents(f"tfds:{folder}")) == 9


def test_no_class_is_imported_for_a_dataset_that_is_named(folder, payload):
    """TFDS itself builds a dataset whose code it lacks from its folder."""
    evil = {"pythonClassName": payload, "featuresDict": {"features": {"text": TEXT}}}
    place = folder.parent / "data" / "unheard_of" / "1.0.0"
    shutil.copytree(folder, place)
    names = {"tfds_dir": str(folder.parent / "data")}
    [(source, _)] = open_sources("tfds:unheard_of", Options(**names))
    assert len(source) == 9
    (place / "features.json").write_text(json.dumps(evil))
    assert "FeaturesDict of TFDS" in error_of("tfds:unheard_of", **names)
    place = folder.parent / "data" / "gsm8k" / "1.0.0"
    shutil.copytree(folder, place)
    (place / "features.json").write_text(json.dumps(evil))
    error_of("tfds:gsm8k", **names)


def test_features_as_old_versions_wrote_them(folder):
    kind = "tensorflow_datasets.core.features.text_feature.Text"
    old = {"type": DICT, "content": {"text": {"type": kind, "content": {"use_encoder": False}}}}
    (folder / "features.json").write_text(json.dumps(old))
    assert len(read_documents(str(folder))) == 9


@pytest.mark.parametrize(
    "template",
    [
        "../{DATASET}", "/etc/passwd", "a/{SPLIT}", "..", "{DATASET.__class__}", "{SPLIT:>999999999}",
        "{X}", "", "x" * 300, 5, "a\0b", "{DATASET", "..\\x", ["{SPLIT}"],
    ],
)  # fmt: skip
def test_files_are_those_of_the_folder(folder, template):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["filepathTemplate"] = template
    (folder / "dataset_info.json").write_text(json.dumps(info))
    if template == "":  # TFDS's own names
        assert len(read_documents(str(folder))) == 9
    else:
        message = error_of(folder)
        assert "dataset_info.json: " in message or "No such file" in message


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        (["-1"], "'-1', which is no number of records"),
        ([float("nan")], "nan, which is no number"),
        ([True], "True, which is no number"),
        (["9" * 30], "which is no number"),
        (["10"], "fewer records than dataset_info.json says"),
        (["99999999999"], "fewer records than dataset_info.json says"),
        ("9", "shardLengths must be a list"),
        (["0"] * 100_001, "shardLengths must be a list of up to 100000 numbers"),
        (["9", "9"], "No such file"),
        ([], "nothing but blanks"),
    ],
)
def test_numbers_of_records(folder, lengths, said):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = lengths
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert said in error_of(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"fileFormat": 5}, {"fileFormat": "../x"}, {"name": []}, {"splits": 3}, {"splits": [3]},
        {"splits": [{"name": "../x"}]}, {"splits": [{"name": 4}]}, {"splits": []},
    ],
)  # fmt: skip
def test_malformed_metadata(folder, fields):
    change(folder, "dataset_info.json", **fields)
    error_of(folder)


def test_special_and_broken_files(folder):
    for name in ("features.json", "dataset_info.json"):
        content = (folder / name).read_bytes()
        for broken in (b"", b"[]", b"\xff", b"[" * 100_000, b"{", content[:-9]):
            (folder / name).write_bytes(broken)
            assert name in error_of(folder)
        (folder / name).write_bytes(content)
    [path] = folder.glob("*.array_record*")
    path.unlink()
    os.mkfifo(path)
    assert f"{path} is a named pipe, not a file" in error_of(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.data())
def test_any_change_of_the_metadata_is_read_or_refused(whole, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("changed")
    for path in whole.iterdir():
        (folder / path.name).symlink_to(path)
    name = data.draw(st.sampled_from(["features.json", "dataset_info.json"]))
    content = json.loads((whole / name).read_text())
    place = content
    while isinstance(place, dict | list) and place:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else [0]))
        if data.draw(st.booleans()) or not isinstance(place[key], dict | list):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(content))
    before = copy.copy(sys.path)
    try:
        tfds_folder.read(folder)
        read_documents(f"tfds:{folder}")
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    assert sys.path == before
