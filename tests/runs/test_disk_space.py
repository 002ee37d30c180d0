"""Room for a checkpoint, on a disk whose free space is made up."""

import collections
import shutil

import jax
import numpy as np
import pytest

from fqs_jax.runs import disk_space
from fqs_jax.runtime import notes
from fqs_jax.runtime.errors import UserError

STATE = ({"w": np.zeros((1000, 500), np.float32)}, {"count": np.zeros((), np.int32)})
BYTES = 1000 * 500 * 4 + 4
Usage = collections.namedtuple("Usage", "total used free")


def with_free(monkeypatch, free, total=10**12):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total, total - free, free))


def test_shapes_count_like_arrays():
    shapes = jax.eval_shape(lambda: STATE)
    assert disk_space.needed(STATE) == disk_space.needed(shapes) == BYTES


def test_a_stage_does_not_begin_without_room(monkeypatch, tmp_path):
    folder = tmp_path / "stage_1" / "checkpoints"  # not there yet
    with_free(monkeypatch, BYTES)
    disk_space.check(folder, STATE, 1)
    with_free(monkeypatch, 1_500_000)
    with pytest.raises(UserError, match=r"needs 2\.0 MB.* 1\.5 MB free; make room") as error:
        disk_space.check(folder, STATE, 1)
    assert str(folder) in str(error.value)
    assert not folder.parent.exists()


@pytest.mark.parametrize(
    ("keep", "there", "rooms", "is_noted"),
    [(2, 0, 3, False), (2, 0, 2.9, True), (2, 2, 1, False), (2, 1, 1.9, True), (1, 0, 2, False)],
)
def test_room_for_all_that_are_kept_and_one_more(
    monkeypatch, tmp_path, capsys, keep, there, rooms, is_noted
):
    monkeypatch.setattr(notes, "_noted", set())
    for step in range(there):
        (tmp_path / str(step + 1)).mkdir()
    monkeypatch.setattr(disk_space, "checkpoints", lambda folder: list(folder.iterdir()))
    with_free(monkeypatch, int(rooms * BYTES))
    disk_space.check(tmp_path, STATE, keep)
    assert ("--config.keep_checkpoints" in capsys.readouterr().err) == is_noted


def test_what_reports_no_size_is_no_obstacle(monkeypatch, tmp_path):
    with_free(monkeypatch, 0, total=0)
    disk_space.check(tmp_path, STATE, 2)


def test_buckets_have_no_limit(monkeypatch):
    with_free(monkeypatch, 0)
    assert disk_space.free("gs://bucket/run") is None
