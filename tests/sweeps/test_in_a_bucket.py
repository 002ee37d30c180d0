"""A sweep whose working directory is in a bucket."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fqs_jax.runs import folders
from fqs_jax.runtime import buckets
from fqs_jax.sweeps import cells as cells_lib
from fqs_jax.sweeps import logs, shared_stages
from fqs_jax.sweeps.variants import variant
from tests.sweeps import invented
from tests.sweeps.test_shared_stages import RATES, trained
from tests.tiny_runs import run_alone

SWEEP = """
import ml_collections
from fqs_jax.sweeps import variant

def get_config():
    rates = ("stage_1.learning_rate=0.001", "stage_1.learning_rate=0.002")
    variants = (variant("think", stages="0,1", bracket=rates),)
    fields = {"config": EXPERIMENT, "seeds": (1,), "variants": variants, "show_once": ()}
    return ml_collections.ConfigDict(fields)
"""


def test_a_first_stage_is_copied_and_counts_with_its_last_object(bucket: Path) -> None:
    variants = (variant("think", stages="0,1", bracket=RATES),)
    cells = cells_lib.read(invented.sweep(variants=variants, show_once=()), bucket)
    first, second = cells[0], cells[2]
    trained(first, 0)
    here, there = (folders.stage_folder(cell.folder, 0) for cell in (first, second))
    buckets.write(there / "checkpoints" / "7-1" / "params", b"of a copy that was cut off")
    [note] = shared_stages.copy(second, cells)
    assert note.endswith(
        "stage 0 (base) is that of cell 0 (think, stage_1.learning_rate=0.1, seed 0)"
    )
    names = set(buckets.objects(here))
    assert len(names) > 5 and set(buckets.objects(there)) == names
    assert all(buckets.read(here / name) == buckets.read(there / name) for name in names)
    assert shared_stages.copy(second, cells) == []


@pytest.mark.parametrize("cut", ["run.json", folders.COMMITTED])
def test_a_copy_that_was_cut_off_before_its_last_objects_is_made_again(
    bucket: Path,
    cut: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variants = (variant("think", stages="0,1", bracket=RATES),)
    cells = cells_lib.read(invented.sweep(variants=variants, show_once=()), bucket)
    trained(cells[0], 0)
    copied: list[str] = []
    copy = buckets.client().cp_file

    def interrupted(source: str, target: str) -> None:
        if Path(target).name == cut:
            raise KeyboardInterrupt
        copied.append(Path(target).name)
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(buckets.client(), "cp_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shared_stages.copy(cells[2], cells)
    assert len(copied) > 5
    assert shared_stages.copy(cells[2], cells)
    here, there = (buckets.objects(folders.stage_folder(cells[n].folder, 0)) for n in (0, 2))
    assert set(here) == set(there) and folders.stage_numbers(cells[2].folder) == [0]


def test_a_log_has_what_all_starts_added(bucket: Path) -> None:
    for start in ("first\n", "second\n"):
        with pytest.raises(KeyboardInterrupt), logs.of([bucket]) as [log]:
            with log.here.open("a") as file:
                file.write(start)
            log.keep()
            log.keep()  # which adds nothing
            with log.here.open("a") as file:
                file.write("stopped\n")
            raise KeyboardInterrupt
        assert not log.here.exists()
    assert buckets.read(log.place) == b"first\nstopped\nsecond\nstopped\n"


def test_a_log_of_this_machine_is_where_the_cell_is(tmp_path: Path) -> None:
    with logs.of([tmp_path / "W"]) as [log]:
        log.here.write_text("line\n")
    assert (tmp_path / "W" / "log.txt").read_text() == "line\n"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sweep_in_a_bucket_gives_the_numbers_of_a_local_one(
    bucket: Path,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    experiment, sweep = tmp_path / "experiment.py", tmp_path / "sweep.py"
    experiment.write_text("from tests.tiny_runs import clock_config as get_config\n")
    sweep.write_text(SWEEP.replace("EXPERIMENT", repr(str(experiment))))
    found = []
    for place in (bucket, tmp_path / "W"):
        run_alone("sweep", f"--config={sweep}", f"--workdir={place}", environment=environment)
        found.append(_numbers(place))
        log = place / "cells/think/stage_1.learning_rate=0.002/seed_1/log.txt"
        assert "stage 0 (base) is that of cell 0" in log.read_text()
    assert found[0] == found[1]


def _numbers(root: Path) -> Sequence[object]:
    content = json.loads((root / "results.json").read_text())
    assert (root / "results.md").exists() and (root / "results.png").exists()
    return [content["lines"], content["lines_not_chosen"], content["brackets"]]
