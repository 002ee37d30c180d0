"""Buckets that do not answer, names that are patterns, and others who write at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gcsfs.retry import HttpError

from fqs_jax.runs import folders
from fqs_jax.runtime import buckets, files, inputs, leases, local_copies, paths
from fqs_jax.runtime.errors import UserError
from fqs_jax.sweeps import logs, shared_stages
from fqs_jax.training import teacher_scores
from tests.conftest import REPO
from tests.emulator import as_another_process
from tests.tiny_states import save_steps

# An outage --------------------


@pytest.fixture
def outage(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function after which no request of a kind is answered."""

    async def fails(*_: Any, **__: Any) -> None:
        raise HttpError({"code": 502, "message": "Bad Gateway"})

    def begin(kind: str) -> None:
        monkeypatch.setattr(buckets.client(), kind, fails)

    return begin


def test_an_outage_does_not_look_like_a_run_without_checkpoints(bucket: Path, outage: Any) -> None:
    save_steps(bucket / "stage_0" / "checkpoints", 1)
    folder = folders.checkpoint_folder(bucket, 0)
    assert folders.latest_step(folder) == 1 and folders.stage_numbers(bucket) == [0]
    outage("_info")
    for ask in (
        lambda: folders.latest_step(folder),
        lambda: folders.existing_stages(bucket),
        lambda: files.entries(bucket),
        (bucket / "x").exists,
        bucket.is_dir,
    ):
        with pytest.raises(UserError, match=r"cannot read gs://bucket/.*Bad Gateway"):
            ask()


def test_teacher_scores_survive_an_outage(bucket: Path, outage: Any) -> None:
    record = np.dtype([("teacher_log_prob", np.float32)])
    teacher_scores._check_identity(bucket, "teacher")
    piece = bucket / "batches_0000000_0000008.npy"
    files.replace_array(piece, np.ones(8, record))
    teacher_scores._check_identity(bucket, "teacher")
    assert teacher_scores._read_piece(piece, 8, record) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets.client(), "cat_file", _unavailable)
        for read in (
            lambda: teacher_scores._check_identity(bucket, "teacher"),
            lambda: teacher_scores._read_piece(piece, 8, record),
        ):
            with pytest.raises(UserError, match="cannot read gs://"):
                read()
    assert piece.exists()
    teacher_scores._check_identity(bucket, "another")
    assert not piece.exists()


def _unavailable(*_: Any, **__: Any) -> None:
    raise HttpError({"code": 503, "message": "Service Unavailable"})


def test_a_probe_whose_deletion_had_no_answer_is_no_missing_bucket(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeated(name: str) -> None:
        raise FileNotFoundError(name)  # the first request has deleted it

    monkeypatch.setattr(buckets.client(), "rm_file", repeated)
    buckets.check_writable(bucket)


def test_a_log_that_cannot_be_kept_ends_nothing(
    bucket: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with logs.of([bucket]) as [log]:
        log.here.write_text("line\n")
        with monkeypatch.context() as patch:
            patch.setattr(buckets.client(), "cat_file", _unavailable)
            log.keep()
        assert f"note: a log stays in {log.here}: cannot read gs://" in capfd.readouterr().err
    assert buckets.read(log.place) == b"line\n" and not log.here.exists()
    with monkeypatch.context() as patch, logs.of([bucket]) as [log]:
        patch.setattr(buckets.client(), "cat_file", _unavailable)
        log.here.write_text("another\n")
    assert log.here.read_text() == "another\n"
    log.here.unlink()


# Names --------------------


def test_only_what_is_named_is_deleted(bucket: Path) -> None:
    for name in ("a[1].txt", "a1.txt", "k*/x", "keep/x", "b?", "bc"):
        buckets.write(paths.expand(f"{bucket}/{name}"), b"")
    for name in ("a[1].txt", "k*", "b?"):
        buckets.delete(paths.expand(f"{bucket}/{name}"))
    assert list(buckets.objects(bucket)) == ["a1.txt", "bc", "keep/x"]


def test_a_folder_that_was_made_in_a_console(bucket: Path) -> None:
    """It has an object of its own name, with "/" at the end."""
    for name in ("model/", "empty/"):
        buckets.client().pipe_file(f"{bucket}/{name}", b"")
    files.write_text(bucket / "model" / "config.json", "{}")
    assert list(buckets.objects(bucket / "model")) == ["config.json"]
    assert os.listdir(local_copies.of(bucket / "model")) == ["config.json"]
    with files.new_folder(bucket / "empty") as folder:
        (folder / "config.json").write_text("{}")
    assert list(buckets.objects(bucket / "empty")) == ["config.json"]
    buckets.copy(bucket / "model", bucket / "copy", ())
    assert list(buckets.objects(bucket / "copy")) == ["config.json"]


def test_tensorflow_beside_it_does_not_read_the_bucket(
    environment: dict[str, str], bucket: Path, tmp_path: Path
) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('it was imported')\n")
    files.write_text(bucket / "a", "")
    program = (
        "import sys; from fqs_jax.runtime import paths; print(paths.expand(sys.argv[1]).exists())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bucket / "a")],
        env=os.environ | environment | {"PYTHONPATH": f"{tmp_path}:{REPO}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n", done.stderr


# Others --------------------


def test_an_output_that_another_process_has_written_meanwhile(bucket: Path) -> None:
    with pytest.raises(UserError, match="exists already"), files.new_folder(bucket) as folder:
        (folder / "config.json").write_text("ours")
        files.write_text(bucket / "config.json", "theirs")
    assert inputs.read_text(bucket / "config.json") == "theirs"


def test_a_checkpoint_that_is_deleted_during_a_copy_is_left_out(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old/a", "old/commit_success.txt", "new"):
        files.write_text(bucket / "from" / name, name)
    copy = buckets.client().cp_file

    def slow(source: str, target: str) -> None:
        buckets.delete(bucket / "from" / "old")
        copy(source, target)

    monkeypatch.setattr(buckets.client(), "cp_file", slow)
    buckets.copy(bucket / "from", bucket / "to", ("commit_success.txt",))
    assert list(buckets.objects(bucket / "to")) == ["new"]
    with pytest.raises(UserError, match="there is no such bucket"):
        buckets.copy(bucket / "from", paths.expand("gs://none/to"), ())


def test_a_first_stage_is_not_copied_into_a_cell_that_runs(
    bucket: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_text(bucket / "a" / "stage_0" / "run.json", "{}")
    with leases.held(bucket / "b"):
        as_another_process(monkeypatch)
        with pytest.raises(UserError, match="in use by process"):
            shared_stages._copy(bucket / "a" / "stage_0", bucket / "b" / "stage_0")
        monkeypatch.undo()
    assert not (bucket / "b" / "stage_0").exists()


def test_a_look_that_takes_long_does_not_make_a_lease_old(
    bucket: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, slow = leases._generation, [True]

    def generation(lease: Path) -> Any:
        found = look(lease)
        if slow.pop() if slow else False:
            time.sleep(2 * leases.DURATION)
        return found

    with leases.held(bucket):
        as_another_process(monkeypatch)
        monkeypatch.setattr(leases, "_generation", generation)
        with pytest.raises(UserError, match="in use by process"), leases.held(bucket):
            pass
        monkeypatch.undo()
