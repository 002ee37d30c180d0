"""Datasets of the hub. Only the download is replaced: a folder with what it would have left."""

import pyarrow
import pyarrow.parquet
import pytest

from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import open_sources
from fqs_jax.runtime.errors import UserError

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")


def error_of(name, **options):
    with pytest.raises(UserError) as caught:
        open_sources(name, Options(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Makes the files of (path, texts), and notes what is asked for."""
    asked = []

    def make(**files):
        for name, texts in files.items():
            path = tmp_path / name.replace("__", "/")
            path.mkdir(parents=True)
            for i, text in enumerate(texts):
                pyarrow.parquet.write_table(
                    pyarrow.table({"text": [text]}), path / f"{i:04d}.parquet"
                )
        return asked

    def snapshot_download(repo_id, **arguments):
        asked.append((repo_id, arguments))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return make


def test_parquet_files_of_a_split(downloads):
    asked = downloads(default__train=["a", "b"], default__test=["c"])
    [(source, _)] = open_sources("hub:owner/name", Options(download=True))
    assert [source[i] for i in range(len(source))] == ["a", "b"]
    assert asked[0][0] == "owner/name"
    assert asked[0][1] == {
        "repo_type": "dataset",
        "revision": "refs/convert/parquet",
        "allow_patterns": ["*/*train/*.parquet"],
        "local_files_only": False,
    }
    [(source, _)] = open_sources("hub:owner/name:test", Options())
    assert source[0] == "c" and asked[1][1]["local_files_only"]


def test_configs(downloads):
    downloads(one__train=["a"], two__train=["b"])
    assert "has several configs; name one: hub:owner/name/one" in error_of("hub:owner/name")
    [(source, _)] = open_sources("hub:owner/name/two", Options())
    assert source[0] == "b"


def test_what_the_hub_does_not_have(downloads):
    downloads(**{"default__partial-train": ["a"]})
    assert "the hub converted only a part of 'train'" in error_of("hub:owner/name")
    assert "no Parquet files of split 'dev'" in error_of("hub:owner/name:dev")
    assert "write it as hub:OWNER/NAME" in error_of("hub:name")


@pytest.mark.parametrize(
    ("error", "download", "said"),
    [
        (
            errors.LocalEntryNotFoundError("x"),
            False,
            "to fetch it, run python -m fqs_jax.prepare with --text, --out and --download first",
        ),
        (errors.LocalEntryNotFoundError("x"), True, "the hub cannot be reached"),
        (errors.HFValidationError("bad\nname"), True, "cannot be downloaded (bad)"),
        (OSError("no space\nleft"), True, "cannot be downloaded (no space)"),
    ],
)
def test_downloads_that_fail(monkeypatch, error, download, said):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    assert said in error_of("hub:owner/name", download=download)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "needs huggingface_hub: pip install 'fqs_jax[hf]'" in error_of("hub:owner/name")
