"""ArrayRecord files and TFDS datasets: a real one is built and read, without TensorFlow."""

import json
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from fqs_jax.data.sources import array_records
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import Documents, open_sources
from fqs_jax.data.sources.tfds_writer import build_dataset
from fqs_jax.runtime.errors import UserError

TEXTS = [f"document {i}, été" for i in range(40)]


def write(path, values, group=1):
    writer = ArrayRecordWriter(str(path), f"group_size:{group}")
    for value in values:
        writer.write(value if isinstance(value, bytes) else value.encode())
    writer.close()
    return path


def all_of(name, **options):
    [(source, _)] = open_sources(str(name), Options(**options))
    return [source[i] for i in range(len(source))]


def error_of(name, **options):
    with pytest.raises(UserError) as caught:
        all_of(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("tfds") / "prepared"
    build_dataset(Documents(TEXTS), out, "prepared", 0.0)
    return out


@pytest.mark.parametrize("group", [1, 16])
def test_records_of_text(tmp_path, group):
    assert all_of(write(tmp_path / "a.array_record", TEXTS, group)) == TEXTS
    [(source, _)] = open_sources(f"{tmp_path}/*", Options())
    assert pickle.loads(pickle.dumps(source))[7] == TEXTS[7]


def test_records_of_json(tmp_path):
    path = write(tmp_path / "a.arrayrecord", [json.dumps({"text": t, "n": 1}) for t in TEXTS])
    assert all_of(path) == TEXTS
    assert "a.arrayrecord, record 0: no key 'body'" in error_of(f"{path}#body")
    mixed = write(tmp_path / "b.array_record", ['{"text": "a"}', "plain"])
    assert "b.array_record, record 1: not JSON" in error_of(mixed)


def test_bad_records(tmp_path):
    assert "record 1: not UTF-8 text" in error_of(
        write(tmp_path / "a.array_record", ["x", b"\xff"])
    )
    assert "nothing but blanks" in error_of(write(tmp_path / "b.array_record", []))
    (tmp_path / "c.array_record").write_bytes(b"")
    assert "c.array_record: damaged or of another kind" in error_of(tmp_path / "c.array_record")


def test_damaged_files(tmp_path):
    content = write(tmp_path / "a.array_record", TEXTS * 50).read_bytes()
    (tmp_path / "cut.array_record").write_bytes(content[: len(content) // 2])
    assert "cut.array_record: damaged or of another kind" in error_of(tmp_path / "cut.array_record")
    flipped = bytearray(content)
    flipped[len(content) // 3 : len(content) // 3 + 20] = bytes(20)
    (tmp_path / "flipped.array_record").write_bytes(flipped)
    assert "damaged or of another kind" in error_of(tmp_path / "flipped.array_record")


def test_a_prepared_dataset(prepared):
    assert all_of(f"tfds:{prepared}") == all_of(f"tfds:{prepared}:train") == TEXTS
    assert all_of(prepared) == all_of(f"{prepared}:train") == TEXTS  # a folder needs no tfds:
    assert all_of(f"tfds:{prepared.parent}") == TEXTS  # the only one below it
    assert all_of(f"tfds:{prepared}:train[:25%]") == TEXTS[:10]
    [(source, _)] = open_sources(f"tfds:{prepared}", Options())
    assert pickle.loads(pickle.dumps(source))[7] == TEXTS[7]
    assert "tensorflow" not in sys.modules


def test_what_a_prepared_dataset_does_not_have(prepared, tmp_path):
    assert "no split 'dev'; it has train, and slices of them" in error_of(f"tfds:{prepared}:dev")
    assert "no text feature 'body'" in error_of(f"tfds:{prepared}#body")
    [path] = prepared.glob("*.array_record*")
    assert f"part of a TFDS dataset; name its folder, tfds:{prepared}" in error_of(path)
    assert "no such folder; make it with python -m fqs_jax.prepare" in error_of(
        f"tfds:{tmp_path}/x"
    )
    assert "no prepared TFDS dataset in it" in error_of(f"tfds:{tmp_path}")


def test_a_dataset_that_needs_tensorflow(prepared, tmp_path):
    for path in prepared.glob("*.json"):
        content = path.read_text().replace('"array_record"', '"tfrecord"')
        (tmp_path / path.name).write_text(content)
    assert "stored as tfrecord, which needs TensorFlow to read" in error_of(f"tfds:{tmp_path}")


def test_a_dataset_with_a_damaged_or_missing_file(prepared, tmp_path):
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    [path] = tmp_path.glob("*.array_record*")
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged or of another kind" in error_of(f"tfds:{tmp_path}")
    path.unlink()
    assert f"{path}: No such file or directory; check the name" in error_of(f"tfds:{tmp_path}")


def test_datasets_by_name(tmp_path):
    """Those that TFDS ships are known; nothing is downloaded unasked."""
    message = error_of("tfds:gsm8k", tfds_dir=str(tmp_path))
    assert f"tfds:gsm8k is not prepared in {tmp_path}/gsm8k/" in message
    said = f"run python -m fqs_jax.prepare with --text, --tfds_dir={tmp_path}, --out and --download first"
    assert message.endswith(said)
    assert "TFDS has no dataset of that name" in error_of(
        "tfds:no_such_set", tfds_dir=str(tmp_path)
    )


class Named(tfds.core.GeneratorBasedBuilder):
    """A dataset with a name of its own, as TFDS ships them."""

    VERSION = tfds.core.Version("1.0.0")
    name = "fqs_jax_test_set"

    def _info(self):
        features = {"answer": tfds.features.Text(), "number": np.int32}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"answer": f"answer {i}", "number": i}


def test_a_named_dataset_is_prepared_if_asked(tmp_path):
    options = {"tfds_dir": str(tmp_path), "download": True}
    found = all_of("tfds:fqs_jax_test_set:test#answer", **options)
    assert sorted(found) == ["answer 0", "answer 1"]
    options["download"] = False  # it is here now
    assert len(all_of("tfds:fqs_jax_test_set#answer", **options)) == 5
    said = "no text feature 'text'; name one with data.text_key or tfds:fqs_jax_test_set#FEATURE"
    assert f"{said} (seen: 'answer')" in error_of("tfds:fqs_jax_test_set", **options)


def test_a_download_that_fails(tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(Named, "download_and_prepare", fail)
    message = error_of("tfds:fqs_jax_test_set", tfds_dir=str(tmp_path), download=True)
    assert "tfds:fqs_jax_test_set cannot be prepared (no network at all)" in message


def test_reading_tfds_from_many_threads(prepared):
    from concurrent.futures import ThreadPoolExecutor

    array_records._reader.cache_clear()
    [(source, _)] = open_sources(f"tfds:{prepared}", Options())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, list(range(40)) * 5)) == TEXTS * 5
