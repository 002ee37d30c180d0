"""Metrics elsewhere: files read back by protobuf and Prometheus's own parser, and loggers that fail."""

import struct
import sys
import types

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fqs_jax.runs import also_log, event_file, prometheus_file
from fqs_jax.runtime import notes
from fqs_jax.runtime.errors import UserError

ROW = {"step": 300, "loss": 0.25, "grad_norm/lm": None, "time": {"step_seconds": 2.0}}


def event_message():
    """The fields of TensorFlow's event.proto and summary.proto that are used."""
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    messages = {
        "Value": [("tag", 1, field.TYPE_STRING), ("simple_value", 2, field.TYPE_FLOAT)],
        "Summary": [("value", 1, ".t.Value")],
        "Event": [
            ("wall_time", 1, field.TYPE_DOUBLE),
            ("step", 2, field.TYPE_INT64),
            ("file_version", 3, field.TYPE_STRING),
            ("summary", 5, ".t.Summary"),
        ],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for title, number, kind in fields:
            label = field.LABEL_REPEATED if title == "value" else field.LABEL_OPTIONAL
            added = message.field.add(name=title, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, kind
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def records(content):
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def test_an_event_file_is_what_protobuf_reads(tmp_path):
    log = event_file.EventFile(tmp_path)
    log.step(ROW)
    log.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    head, event = map(event_message().FromString, records(path.read_bytes()))
    assert head.file_version == "brain.Event:2"
    assert event.step == 300 and event.wall_time > 1e9
    found = {value.tag: value.simple_value for value in event.summary.value}
    assert found == {"loss": 0.25, "time/step_seconds": 2.0}


def test_checksums():
    assert event_file.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert event_file.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    rotated = ((0xE3069283 >> 15) | (0xE3069283 << 17)) & 0xFFFFFFFF
    masked = (rotated + 0xA282EAD8) % 2**32
    assert event_file.record(b"123456789")[-4:] == masked.to_bytes(4, "little")


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
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        also_log.check(["wandb"], tmp_path)
    with pytest.raises(UserError, match="--also_log=x: choose from tensorboard, wandb, prometheus"):
        also_log.check(["x"], tmp_path)
