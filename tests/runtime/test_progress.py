"""What takes long is said, with what is known about it; what does not is not."""

import time

from fqs_jax.runtime import notes, progress
from fqs_jax.runtime.progress import Progress


def test_waiting_for_something_long_is_a_line_and_no_part_of_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LONG_SECONDS", 0.01)
    with Progress("stage 1", 0, 3) as bar:
        with bar.waiting("compiling the step, 20 s the last time"):
            time.sleep(0.3)
        bar.advance_to(3)
        assert time.monotonic() - bar._started < 0.2
    said = capsys.readouterr().err
    assert said == "stage 1: compiling the step, 20 s the last time\nstage 1: 3/3, 0 s\n"


def test_what_is_short_is_silent(monkeypatch, capsys, tmp_path):
    with Progress("stage 1", 0, 3) as bar, bar.waiting("compiling the step"):
        pass
    with Progress("reading weights, MB", 0, 3, after=5.0) as bar:
        bar.advance_to(3)
    with progress.reading(tmp_path):
        pass
    assert capsys.readouterr().err == ""


def test_bytes_of_what_is_read(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(notes, "_noted", set())
    monkeypatch.setattr(progress, "LONG_SECONDS", 0.01)
    (tmp_path / "d").mkdir()
    for name in ("a", "d/b"):
        (tmp_path / name).write_bytes(bytes(750_000))
    with progress.reading(tmp_path):
        time.sleep(0.3)
    assert capsys.readouterr().err == f"note: reading {tmp_path}, 1.5 MB\n"
