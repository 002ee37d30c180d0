"""Metric files survive kills and resumes; progress is shown where there is no terminal, too."""

import json
import math
import os
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.runs import metrics_file
from fqs_jax.runs.metrics_file import MetricsFile, read_events, read_rows
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.progress import Progress


def write(path, first, steps):
    with MetricsFile(path, first) as file:
        file.event("start", step=first)
        for step in steps:
            file.step(step, {"loss": jnp.float32(step / 2)}, tokens=step * 10)


def steps_of(path):
    return [row["step"] for row in read_rows(path)]


def test_rows_and_events(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"event": "start", "step": 0}
    assert lines[1:] == read_rows(path)
    assert all(line.pop("time")["step_seconds"] > 0 for line in lines[1:])
    assert lines[1:] == [
        {"step": 1, "loss": 0.5, "tokens": 10},
        {"step": 2, "loss": 1.0, "tokens": 20},
    ]


def test_resume_drops_the_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2, 3, 4])
    write(path, 2, [3, 4, 5])
    assert steps_of(path) == [1, 2, 3, 4, 5]
    events = [row["step"] for row in map(json.loads, path.open()) if "event" in row]
    assert events == [0, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_stage_begun_again_begins_its_file_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2, 3])
    write(path, 0, [1])
    assert steps_of(path) == [1]


def test_a_last_line_that_a_kill_cut_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2, 3])
    whole = path.read_text()
    for cut in (1, 2, 20, 60):
        path.write_text(whole[:-cut])
        assert steps_of(path) == [1, 2]
    write(path, 2, [3])
    assert steps_of(path) == [1, 2, 3]
    assert read_rows(tmp_path / "none.jsonl") == []


def test_numbers_that_json_lacks(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"a": jnp.float32(math.nan), "b": np.float64(-math.inf), "c": np.int32(3), "d": True}
    with MetricsFile(path, 0) as file:
        file.step(1, values, e=math.inf)

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row.pop("time")
    assert row == {"step": 1, "a": None, "b": None, "c": 3, "d": True, "e": None}


def test_a_row_is_returned_as_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        row = file.step(2, {"loss": jnp.float32(2)})
        file.flush()
        assert read_rows(path) == [row]
        assert row.pop("time")["step_seconds"] > 0 and row == {"step": 2, "loss": 2.0}


def test_progress_without_a_terminal_says_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 6))  # every look is 6 seconds later
    monkeypatch.setattr(metrics_file.time, "monotonic", lambda: float(next(clock)))
    with Progress("stage 1 (base)", 10, 20) as bar:
        for step in range(10):
            bar.show({"nll_base": 2.0 - step / 10, "nll_mixed": 1.5, "loss": 9.0})
            bar.advance()
        bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 10
    assert lines[0].startswith("stage 1 (base): 1") and "s left" in lines[0]
    assert lines[-1].startswith("stage 1 (base): 20/20, ") and "left" not in lines[-1]
    assert lines[-1].endswith("nll_base 1.100 nll_mixed 1.500")
    assert "9.0" not in "".join(lines)


def test_progress_says_nothing_of_nothing(capsys):
    with Progress("stage 1", 5, 5):
        pass
    assert capsys.readouterr().err == ""


# Lines that cannot be read --------------------

BAD = [
    *(b"\0" * 64, b'{"step": 3, "lo', b"[1]", b"3", b'{"event": "start"}', b'{"step": "3"}'),
    *(b"\xff\xfe", b'{"step": NaN}', b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}"),
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_line_that_cannot_be_read_costs_that_line_only(tmp_path, bad, capfd):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2, 3, 4])
    lines = path.read_bytes().splitlines(keepends=True)
    harmed = b"".join([*lines[:2], bad + b"\n", *lines[3:]])
    path.write_bytes(harmed)
    assert steps_of(path) == [1, 3, 4] and len(read_events(path, "start")) == 1
    assert path.read_bytes() == harmed and capfd.readouterr() == ("", "")
    write(path, 4, [5])
    assert steps_of(path) == [1, 3, 4, 5]
    assert capfd.readouterr().err == (
        f"note: 1 of 5 lines of {path} cannot be read and are left out (3); the file as it was is now "
        "metrics.jsonl.damaged\n"
    )
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == harmed
    write(path, 5, [6])
    assert capfd.readouterr() == ("", "")


def test_a_tail_of_nul_bytes(tmp_path, capfd):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2, 3])
    with path.open("ab") as file:
        file.write(b'{"step": 4, ' + bytes(1000))
    assert steps_of(path) == [1, 2, 3]
    write(path, 3, [4])
    assert steps_of(path) == [1, 2, 3, 4]
    note = f"note: 1 of 5 lines of {path} cannot be read and are left out (5)\n"
    assert capfd.readouterr().err == note
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_pipe_is_no_metrics_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{path} is a named pipe"):
        read_rows(path)


def test_a_full_disk(tmp_path, monkeypatch):
    """Here: a file that may not grow. The row that did not fit is dropped by the resume."""
    path = tmp_path / "metrics.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write(path, 0, [1])
    try:
        with pytest.raises(UserError) as refused, MetricsFile(path, 1) as file:
            file.step(2, {})
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
            file.step(3, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(refused.value) == (
        f"cannot write {path}: File too large; make room, and run the same command again to resume"
    )
    assert steps_of(path) == [1, 2]
    write(path, 2, [3])
    assert steps_of(path) == [1, 2, 3]


def test_a_file_has_a_version_and_a_newer_one_is_refused_with_one_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        file.start(step=0)
        file.step(1, {"loss": 1.0})
    [start] = read_events(path, "start")
    assert start["schema"] == 1
    for version in (2, "x"):
        newer = path.read_text().replace('"schema": 1', f'"schema": {json.dumps(version)}')
        (tmp_path / "newer.jsonl").write_text(newer)
        with pytest.raises(UserError, match=f"schema {version!r}, this one reads up to 1"):
            read_rows(tmp_path / "newer.jsonl")
        with pytest.raises(UserError, match="written by a newer fqs_jax"):
            MetricsFile(tmp_path / "newer.jsonl", 1)
    assert (tmp_path / "newer.jsonl").read_text() == newer
    path.write_text(path.read_text().replace('"schema": 1, ', ""))  # as 0.2.0 wrote it
    assert steps_of(path) == [1]
