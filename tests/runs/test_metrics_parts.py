"""Metrics in numbered parts, as in a bucket, here in a folder of this machine."""

import json

import pytest

from fqs_jax.runs import metrics_parts
from fqs_jax.runs.metrics_file import read_events, read_rows
from fqs_jax.runs.metrics_parts import Parts


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(metrics_parts, "SIZE", 100)


def line(step, **fields):
    return json.dumps({"step": step, **fields}).encode() + b"\n"


def write(folder, steps, before=()):
    parts = Parts(folder, before)
    for step in steps:
        parts.write(line(step, loss=step / 7))
    return parts


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_lines_come_back_in_order_from_parts_of_bounded_size(tmp_path, small):
    folder = tmp_path / "metrics.jsonl"
    write(folder, range(40)).flush()
    assert [row["step"] for row in read_rows(folder)] == list(range(40))
    assert len(names(folder)) > 5 and names(folder)[0] == "000000.jsonl"
    assert all(
        (folder / name).stat().st_size < 100 + len(line(39, loss=39 / 7)) for name in names(folder)
    )


def test_readers_see_whole_lines_and_only_what_was_flushed(tmp_path):
    parts = write(tmp_path, [1, 2])
    assert read_rows(tmp_path) == [] and read_events(tmp_path, "start") == []
    parts.flush()
    parts.write(line(3, event="start"))
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]
    parts.flush()
    assert read_events(tmp_path, "start") == [{"step": 3, "event": "start"}]


def test_a_flush_comes_by_itself_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_parts, "INTERVAL", 0.0)
    write(tmp_path, [1, 2])
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]


def test_a_resume_writes_only_the_part_that_it_cuts_and_deletes_those_after_it(tmp_path, small):
    write(tmp_path, range(40)).flush()
    kept = b"".join(metrics_parts.read(tmp_path)).splitlines(keepends=True)[:18]
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)}
    parts = Parts(tmp_path, kept)
    assert [row["step"] for row in read_rows(tmp_path)] == list(range(18))
    unchanged = [
        name for name in names(tmp_path) if (tmp_path / name).stat().st_mtime_ns == before[name]
    ]
    assert len(names(tmp_path)) - len(unchanged) <= 1 < len(unchanged)
    parts.write(line(18))
    parts.flush()
    assert [row["step"] for row in read_rows(tmp_path)] == list(range(19))


def test_a_stage_begun_again_begins_its_parts_again(tmp_path, small):
    write(tmp_path, range(40)).flush()
    (tmp_path / "notes.txt").write_text("not a part")
    write(tmp_path, [1]).flush()
    assert names(tmp_path) == ["000000.jsonl", "notes.txt"]
    assert [row["step"] for row in read_rows(tmp_path)] == [1]


def with_lease(monkeypatch, number):
    monkeypatch.setattr(metrics_parts.leases, "number", lambda folder: number)


def steps(folder):
    return [row["step"] for row in read_rows(folder)]


@pytest.mark.parametrize("kept", range(0, 41, 5))
def test_parts_of_a_run_that_lost_its_lease_do_not_count(tmp_path, small, monkeypatch, kept):
    with_lease(monkeypatch, 1)
    old = write(tmp_path, range(37))
    old.flush()
    lines = b"".join(metrics_parts.read(tmp_path)).splitlines(keepends=True)[:kept]
    with_lease(monkeypatch, 2)
    new = Parts(tmp_path, lines)
    expected = list(range(min(kept, 37)))
    assert steps(tmp_path) == expected
    # What the first run had on its way, of the last part and of one more.
    for step in range(37, 45):
        old.write(line(step, late=True))
        old.flush()
    assert steps(tmp_path) == expected
    new.write(line(100))
    new.flush()
    assert steps(tmp_path) == [*expected, 100]
    with_lease(monkeypatch, 3)
    Parts(tmp_path, b"".join(metrics_parts.read(tmp_path)).splitlines(keepends=True))
    assert steps(tmp_path) == [*expected, 100]
    assert len({name[:6] for name in names(tmp_path)}) == len(names(tmp_path))  # none is left
