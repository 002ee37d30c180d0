"""The table of plans: its cases, its search through records, and that the docs show what the records say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plan_calibration, plan_records, plan_table
from benchmarks.plan_table import Case
from tests.conftest import REPO

DOCS = (REPO / "docs/scale.md").read_text()


def committed(name: str) -> dict[str, plan_records.Record]:
    return plan_records.read(REPO / "benchmarks" / name)


def test_every_row_keeps_all_devices_at_work() -> None:
    """Rows times the devices that share each are the devices, up to 8 or 16 rows."""
    assert len(plan_table.cases()) == 4 * 4 * 4 * 2
    shared = {
        ("v6e", "2x4", 4): 1,
        ("v6e", "4x4", 4): 2,
        ("v6e", "4x4", 1): 1,
        ("v7x", "2x2x1", 4): 1,  # 4 chips, 8 devices
        ("v7x", "2x2x2", 4): 2,
        ("v7x", "2x2x4", 1): 2,
    }
    for (kind, shape, stage), tensor in shared.items():
        assert Case("Qwen3-8B", stage, 8, kind).tensor(shape) == tensor
    words = Case("SmolLM3-3B", 4, 256, "v7x").words("2x2x2")
    assert words == [
        "--config=configs/smollm3_3b.py",
        "--stage=4",
        "--topology=v7x:2x2x2",
        "--config.batch_size=256",
        "--config.microbatches=32",
        "--config.mesh.tensor=2",
    ]


def test_a_smaller_slice_that_was_not_tried_is_told() -> None:
    case = Case("Mistral-7B", 1, 8, "v6e")

    def found(**fits: bool) -> tuple[Any, bool]:
        records = {}
        for shape, does in fits.items():
            command = " ".join(case.words(shape.strip("_")))
            records[command] = {"command": command, "fits": does, "shape": shape.strip("_")}
        record, settled = plan_table.smallest(case, records)
        return record and record["shape"], settled

    assert found() == (None, False)
    assert found(_2x2=False, _2x4=True, _4x4=True) == ("2x4", True)
    assert found(_2x4=True) == ("2x4", False)
    assert found(_2x2=False) == (None, False)


def test_what_the_file_has_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four slices the first cannot hold the state, the second is left for later, the third fits."""
    case, path = Case("Mistral-7B", 1, 8, "v6e"), tmp_path / "plans.jsonl"
    peaks = {"2x2": (200, 300, 100), "2x4": (50, 300, 100), "4x4": (20, 50, 100)}
    monkeypatch.setattr(plan_table, "_estimated", lambda case, shape: peaks[shape])
    compiled: list[str] = []

    def plan(words: list[str]) -> plan_records.Record:
        compiled.append(next(w for w in words if w.startswith("--topology")))
        return {"command": " ".join(words), "fits": True}

    monkeypatch.setattr(plan_records, "plan", plan)
    plan_table.flags.FLAGS(["plan_table"], known_only=True)
    for thorough in (False, False, True, True):
        plan_table._search(case, plan_records.read(path), path, thorough, stop=float("inf"))
    assert compiled == ["--topology=v6e:4x4", "--topology=v6e:2x4"]
    kept = list(plan_records.read(path).values())
    assert [record["fits"] for record in kept] == [False, True, True] and kept[0]["held"] == 200


def test_a_compilation_that_failed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be killed for want of memory; that says nothing of the slice."""
    case, path = Case("Mistral-7B", 1, 8, "v6e"), tmp_path / "plans.jsonl"
    monkeypatch.setattr(plan_table, "_estimated", lambda case, shape: (1, 1, 100))
    fits = {"--topology=v6e:2x2": None, "--topology=v6e:2x4": True}

    def plan(words: list[str]) -> plan_records.Record | None:
        found = fits[next(w for w in words if w.startswith("--topology"))]
        return {"command": " ".join(words), "fits": True} if found else None

    monkeypatch.setattr(plan_records, "plan", plan)
    plan_table.flags.FLAGS(["plan_table"], known_only=True)
    plan_table._search(case, plan_records.read(path), path, True, stop=float("inf"))
    record, settled = plan_table.smallest(case, plan_records.read(path))
    assert record is not None and "2x4" in record["command"] and not settled
    fits["--topology=v6e:2x2"] = True
    plan_table._search(case, plan_records.read(path), path, True, stop=float("inf"))
    record, settled = plan_table.smallest(case, plan_records.read(path))
    assert record is not None and "2x2" in record["command"] and settled


def test_a_process_that_fails_has_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def done(code: int) -> Any:
        failed = subprocess.CompletedProcess([], code, "", "error: rows are not divided")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
        return plan_records.plan(["--stage=1"])

    assert done(-9) is None and done(134) is None
    assert done(2) == {
        "command": "--stage=1",
        "fits": False,
        "error": "error: rows are not divided",
    }


def test_records_are_of_the_table_and_small() -> None:
    known = {
        " ".join(case.words(shape))
        for case in plan_table.cases()
        for shape in plan_table.SLICES[case.kind]
    }
    records = committed("plans.jsonl")
    assert records and set(records) <= known
    assert all(len(str(record)) < 1000 for record in records.values())
    for record in records.values():
        assert not record["fits"] or record["bytes"]["peak"] == record["needed"] <= record["memory"]


def test_the_docs_show_every_row_that_is_compiled() -> None:
    assert (REPO / "docs/plans.md").read_text() == plan_table.page(committed("plans.jsonl"))


def test_the_docs_show_the_calibration() -> None:
    plans = committed("plan_calibration.jsonl")
    for measured in plan_calibration.RECORDS:
        plan = plans.get(" ".join(plan_calibration.arguments(measured)), {})
        assert plan_calibration.row(measured, plan) in DOCS
