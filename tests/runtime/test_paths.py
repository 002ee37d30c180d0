"""Paths as users write them."""

import subprocess
import sys
from pathlib import Path

import pytest

from fqs_jax.runtime import paths
from fqs_jax.runtime.errors import UserError
from tests.conftest import REPO


@pytest.mark.parametrize("path", ["a", "a/b.jsonl", "/a/~b", "a:b", "tfds:name", "./gs", ""])
def test_a_path_stays(path):
    assert paths.expand(path) == Path(path)


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert paths.expand("~/run") == Path("/home/of/mine/run")
    assert paths.expand("~") == Path("/home/of/mine")
    with pytest.raises(UserError, match=r"~nobody-of-that-name/run: there is no home folder"):
        paths.expand("~nobody-of-that-name/run")


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/run", "s3://bucket", "hf://org/name", "file:///etc", "GS://b", "https://a/b"],
)
def test_addresses_are_refused(address):
    with pytest.raises(UserError, match="is an address"):
        paths.expand(address)
    with pytest.raises(UserError, match="is an address"):  # what pathlib makes of it
        paths.expand(Path(address))


@pytest.mark.parametrize(
    "address",
    [
        "gs://",
        "gs://bucket",
        "gs://bucket/",
        "gs://Bucket/W",
        "gs://b/a/../c",
        "gs://b//c",
        "gs://b/a\nb",
    ],
)
def test_no_places_in_a_bucket(address):
    with pytest.raises(UserError, match="gs://") as refused:
        paths.expand(address)
    assert str(refused.value).isprintable()


def test_what_a_path_makes_of_a_place_in_a_bucket_is_refused():
    with pytest.raises(UserError, match="write it as gs://BUCKET/NAME"):
        paths.expand(Path("gs://bucket/W"))


def test_some_places_must_be_of_this_machine():
    with pytest.raises(UserError, match="copy it here first"):
        paths.expand_local("gs://bucket/W")


@pytest.mark.parametrize(
    "name", ["w[1]", "w*", "w?", "a\\b", "a\nb", "w\x1b[0m", "w\udcff", "\u202ew"]
)
def test_working_directories_that_checkpoints_cannot_live_in(tmp_path, name):
    with pytest.raises(UserError, match="no checkpoint can be kept under a name with") as refused:
        paths.check_workdir(tmp_path / name / "W")
    assert str(refused.value).isprintable()


def test_other_working_directories(tmp_path, monkeypatch):
    for name in ("w", "w é $x_$ (1) #%41 龟", "a:b", "{x}"):
        paths.check_workdir(tmp_path / name)
    odd = tmp_path / "w[1]"
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(UserError, match=r"a name with \["):
        paths.check_workdir(Path("W"))


def test_nothing_of_buckets_is_imported_for_paths_of_this_machine():
    program = (
        "import sys; from fqs_jax.runtime import cli, files, paths; paths.expand('a').exists()"
    )
    program += "; print({'etils', 'fsspec', 'gcsfs'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True
    )
    assert found.stdout == "set()\n", found.stderr


def test_nul():
    with pytest.raises(UserError, match="NUL"):
        paths.expand("a\0b")
