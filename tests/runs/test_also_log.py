"""Metrics elsewhere: read back by TensorBoard and by Prometheus's own parser, and loggers that fail."""

import json
import sys
import time
import types

import pytest

from fqs_jax.runs import also_log, prometheus_file
from fqs_jax.runtime import notes
from fqs_jax.runtime.errors import UserError

ROW = {"step": 300, "loss": 0.25, "grad_norm/lm": None, "time": {"step_seconds": 2.0}}


def scalars(folder):
    """What TensorBoard would draw of the event files in a folder: {name: {step: value}}."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(module).EventAccumulator(str(folder))
    reader.Reload()
    names = reader.Tags()["scalars"]
    return {name: {e.step: e.value for e in reader.Scalars(name)} for name in names}


def test_tensorboard_draws_the_rows_and_hides_those_that_a_resume_takes_again(tmp_path):
    pytest.importorskip("tensorboardX")
    also_log.check(["tensorboard"], tmp_path)
    with also_log.open_all(["tensorboard"], tmp_path, "s") as elsewhere:
        for step in (100, 200, 300):
            elsewhere.step(ROW | {"step": step, "loss": 9.0})
    with also_log.open_all(["tensorboard"], tmp_path, "s", first_step=200) as elsewhere:
        elsewhere.step(ROW)
        elsewhere.held_out({"event": "held_out", "step": 300, "text": "a", "nll_base": 0.5})
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 2
    assert scalars(tmp_path / "tensorboard") == {
        "loss": {100: 9.0, 200: 9.0, 300: 0.25},
        "time/step_seconds": {100: 2.0, 200: 2.0, 300: 2.0},
        "held_out/nll_base": {300: 0.5},
    }


def test_a_prometheus_file_is_what_its_parser_reads(tmp_path):
    parser = pytest.importorskip("prometheus_client.parser")
    path = tmp_path / "metrics.prom"
    log = prometheus_file.PrometheusFile(path, 'a "stage"\\')
    log.step(ROW | {"loss": 9.0})
    log.step(ROW)
    samples = [
        s for f in parser.text_string_to_metric_families(path.read_text()) for s in f.samples
    ]
    assert all(sample.labels == {"stage": 'a "stage"\\'} for sample in samples)
    values = {sample.name: sample.value for sample in samples}
    assert values.pop("fqs_grad_norm_lm") != 0  # NaN
    assert values == {"fqs_step": 300, "fqs_loss": 0.25, "fqs_step_seconds": 2.0}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.prom"]


def offline_history(path):
    """The rows of a run that W&B kept on this disk; None while it is still writing.

    The file has records of LevelDB's log format, here all in its first block.
    """
    records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, place, rows, ended = path.read_bytes(), 7, [], False  # behind the file's own header
    assert len(content) < 1 << 15
    while place < len(content):
        size = int.from_bytes(content[place + 4 : place + 6], "little")  # behind a checksum
        record = records.Record.FromString(content[place + 7 : place + 7 + size])
        place += 7 + size
        ended |= record.HasField("exit")
        if record.HasField("history"):
            items = record.history.item
            rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows if ended else None


def test_wandb_keeps_the_rows_without_a_network(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    with also_log.open_all(["wandb"], tmp_path, "s") as elsewhere:
        elsewhere.step({"step": 100, "loss": 9.0})
        elsewhere.step(ROW)
        elsewhere.held_out({"event": "held_out", "step": 300, "text": "a", "nll_base": 0.5})
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 30
    while (rows := offline_history(file)) is None and time.monotonic() < until:
        time.sleep(0.1)  # a process of W&B writes it
    first, last = rows
    assert (first["_step"], first["loss"]) == (100, 9.0)
    assert (last["_step"], last["loss"], last["time.step_seconds"]) == (300, 0.25, 2.0)
    assert last["held_out/nll_base"] == 0.5


def test_wandb_gets_the_rows_and_its_failure_is_one_note(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(notes, "_noted", set())
    seen = []

    def log(row, step):
        if step == 2:
            raise ConnectionError("no network")
        seen.append((step, row["loss"]))

    run = types.SimpleNamespace(log=log, finish=lambda: seen.append("finished"))
    fake = types.SimpleNamespace(init=lambda **_: run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    also_log.check(["wandb"], tmp_path)
    with also_log.open_all(["wandb", "prometheus"], tmp_path, "s") as elsewhere:
        for step in (1, 2, 3):
            elsewhere.step({"step": step, "loss": 0.5})
    assert seen == [(1, 0.5)]
    assert capsys.readouterr().err.count("training goes on: no network") == 1
    assert "fqs_step" in (tmp_path / "metrics.prom").read_text()


def test_refused_before_anything_runs(monkeypatch, tmp_path):
    for name, library in (("wandb", "wandb"), ("tensorboard", "tensorboardX")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UserError, match=f"--also_log={name}: .*; pip install {library}"):
            also_log.check([name], tmp_path)
    with pytest.raises(UserError, match="--also_log=x: choose from tensorboard, wandb, prometheus"):
        also_log.check(["x"], tmp_path)
