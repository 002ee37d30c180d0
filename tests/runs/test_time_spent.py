"""Where the time of a stage went, on a run whose times were invented, and so are known."""

import json

from fqs_jax.runs import time_spent
from fqs_jax.runs.metrics_file import MetricsFile, read_lines
from fqs_jax.runs.time_spent import Stopwatch


def start(step, at, since=1000.0, **times):
    return {"event": "start", "step": step, "time": {"since": since, "at": at, **times}}


def row(step, at, seconds_of_step, **times):
    return {"step": step, "time": {"step_seconds": seconds_of_step, "at": at, **times}}


# Ten steps of 2 s, a second of it for text; ten more with a save of 4 s at step 15; then it was killed.
KILLED = [
    start(0, 1045.0, starting_seconds=10, compile_seconds=30, text_seconds=5),
    row(10, 1065.0, 2.0, text_seconds=1, saving_seconds=0),
    row(20, 1085.0, 2.0, text_seconds=0, saving_seconds=4, repeated_requests=3),
]
# Half of the last row is done again, from 1200 on.
CARRIED = {"steps": 8.0, "saving": 2.0, "twice": 10.0, "repeated_requests": 3}
RESUMED = [
    *KILLED[:2],
    start(15, 1210.0, starting_seconds=4, compile_seconds=6, before=CARRIED),
    row(20, 1225.0, 3.0, repeated_requests=1),
    row(30, 1245.0, 2.0),
    {"event": "end", "step": 30, "time": {"seconds": 7.5, "saving_seconds": 7, "at": 1252.5}},
]


def known(spent):
    return {kind: seconds for kind, seconds in spent.seconds.items() if seconds}


def test_every_second_of_a_resumed_run_is_somewhere():
    spent = time_spent.of(RESUMED)
    assert known(spent) == {
        "starting": 14,
        "compile": 36,
        "text": 6,
        "steps": 19 + 8 + 15 + 20 + 0.5,
        "saving": 9,
        "twice": 10,
    }
    assert spent.stopped == 1200 - 1085 and spent.total == 252.5
    assert spent.goodput == 62.5 / 252.5 and spent.repeated == 4
    assert (
        time_spent.of([*RESUMED, {"step": 31, "time": {"step_seconds": "x", "at": None}}]) == spent
    )


def test_stages_one_after_the_other_and_files_without_times():
    other = [start(0, 1310.0, since=1300.0, starting_seconds=10), row(5, 1320.0, 2.0)]
    both = time_spent.together([time_spent.of(RESUMED), None, time_spent.of(other)])
    assert both.total == 320 and both.seconds["steps"] == 72.5 and both.repeated == 4
    assert both.stopped == 115 + (1300 - 1252.5)
    older = [{"event": "start", "step": 0, "time": {"compile_seconds": 3}}, {"step": 1, "loss": 1}]
    assert time_spent.of(older) is None and time_spent.together([None]) is None


def test_a_resume_carries_what_the_lines_that_it_drops_have_cost(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in KILLED))
    with MetricsFile(path, 15) as file:
        file.start(step=15)
    lines = read_lines(path)
    assert lines[:2] == KILLED[:2] and [line["step"] for line in lines] == [0, 10, 15]
    assert lines[2]["time"]["before"] == CARRIED and lines[2]["time"]["since"] == 1000.0
    with MetricsFile(path, 0) as file:  # every checkpoint is gone: begun again
        file.start(step=0)
    [line] = read_lines(path)
    before = line["time"]["before"]
    assert before["twice"] == 20 + 10 + 8 and before["saving"] == 2 and "steps" not in before
    assert before["compile"] == 30 and before["text"] == 5 and line["time"]["since"] == 1000.0


def test_a_stopwatch_counts_what_it_is_told(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time_spent.time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    for seconds, kind in ((2, "text"), (3, "saving"), (4, "text")):
        with watch.on(kind):
            now[0] += seconds
    now[0] += 1
    assert watch.take() == (10, {"text": 6, "saving": 3})
    assert watch.take() == (0, {})
