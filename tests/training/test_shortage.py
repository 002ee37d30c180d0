"""What is said when memory is short, and what would need less."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import pytest

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.runs import source
from fqs_jax.runtime import device_memory
from fqs_jax.runtime.device_memory import GIB
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupts
from fqs_jax.training import loop, memory, overview, shortage
from fqs_jax.training.start import Run
from tests.small_steps import compiled_peak, mesh_of, recipe_of
from tests.tiny_runs import clock_config

# What would make it fit --------------------


def sizes_of(lines: list[str]) -> list[float]:
    return [float(re.findall(r"\(([\d.e+-]+) GiB\)", line)[0]) for line in lines]


def test_settings_are_named_with_the_peaks_that_they_lead_to() -> None:
    recipe, mesh = recipe_of("3", {"compute.position_chunk": 0}), mesh_of()
    now = memory.estimate(recipe, mesh).peak
    lines = shortage.changes(recipe, mesh, room=int(0.8 * now))
    names = [line.partition("=")[0] for line in lines]
    assert names[:3] == [
        "--config.compute.position_chunk",
        "--config.compute.vocab_chunk",
        "--config.microbatches",
    ]
    assert "all together" not in " ".join(lines)  # the microbatches are enough alone
    assert all(size * GIB < now for size in sizes_of(lines))
    # The mildest value that fits, and not the one that needs least.
    assert "--config.microbatches=2 " in " ".join(lines)


def test_if_nothing_is_enough_alone_all_are_taken_together() -> None:
    recipe, mesh = recipe_of("3", {"compute.position_chunk": 0}), mesh_of()
    lines = shortage.changes(recipe, mesh, room=1)
    assert "--config.microbatches=4 " in " ".join(lines) and lines[-1].startswith("all together (")
    *alone, together = sizes_of(lines)
    assert together < min(alone)


def test_estimates_are_scaled_by_what_the_compiler_found() -> None:
    recipe, mesh = recipe_of("3", {"compute.position_chunk": 0}), mesh_of()
    now = memory.estimate(recipe, mesh)
    once = sizes_of(shortage.changes(recipe, mesh, 1, now.peak))
    assert once == sizes_of(shortage.changes(recipe, mesh, 1))
    twice = sizes_of(shortage.changes(recipe, mesh, 1, now.state + 2 * (now.peak - now.state)))
    assert all(b > a for a, b in zip(once, twice, strict=True))


def test_only_what_applies_is_named() -> None:
    """A plain step has no thoughts, and rows that the devices need are not cut into microbatches."""
    plain = " ".join(shortage.changes(recipe_of("0"), mesh_of(), room=1))
    assert "position" not in plain and "microbatches=4" in plain
    spread = " ".join(shortage.changes(recipe_of("0"), mesh_of(fsdp=4), room=1))
    assert "microbatches" not in spread
    tight = {"compute.remat": "full", "compute.vocab_chunk": 16, "microbatches": 4,
             "compute.param_dtype": "bfloat16", "lora.rank": 2}  # fmt: skip
    assert shortage.changes(recipe_of("0", tight), mesh_of(), room=1) == []


# At the doors --------------------


def make_run(root: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> tuple[Run, Recipe]:
    config = clock_config()
    model, tokenizer = source.prepare(root, config)
    monkeypatch.setattr(device_memory, "free", lambda device: room)
    run = Run(root, config, tokenizer, mesh_of(), Interrupts(), str)
    return run, resolve.recipes(config, model)[0]


def test_a_state_that_does_not_fit_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = make_run(tmp_path / "W", monkeypatch, room=1000)
    with pytest.raises(UserError, match=r"of stage 0 \(base\) alone need .* GiB of a device that"):
        loop.run_stage(run, recipe)
    assert not list((tmp_path / "W" / "stage_0").glob("checkpoints/*"))


class Step:
    """A compiled program that says what it needs."""

    def __init__(self, temporaries: int):
        self.temporaries = temporaries

    def memory_analysis(self) -> Any:
        stats = dict.fromkeys(("argument", "output", "alias", "generated_code"), 10)
        sizes = {f"{name}_size_in_bytes": size for name, size in stats.items()}
        return type("Stats", (), sizes | {"temp_size_in_bytes": self.temporaries})


def test_a_compiled_step_is_compared_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, mesh = recipe_of("3"), mesh_of()
    monkeypatch.setattr(device_memory, "free", lambda device: 100)
    shortage.check_program(recipe, mesh, Step(90))  # and 10 of code; its arguments exist
    with pytest.raises(
        UserError, match="settings that lower it, with the peak by estimate: --config"
    ):
        shortage.check_program(recipe, mesh, Step(91))
    monkeypatch.setattr(device_memory, "free", lambda device: None)
    shortage.check_program(recipe, mesh, Step(10**15))


@pytest.mark.parametrize(
    "error, part",
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nframes"),
         "ran out of memory (RESOURCE_EXHAUSTED: Out of memory); by estimate it needs"),
        (MemoryError(), "ran out of memory; by estimate it needs"),
    ],
)  # fmt: skip
def test_running_out_of_memory_is_one_sentence(error: Exception, part: str) -> None:
    with pytest.raises(UserError) as caught, shortage.explained(recipe_of("3"), mesh_of()):
        raise error
    line = str(caught.value)
    assert part in line and "--config.microbatches=4" in line and "\n" not in line


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), shortage.explained(recipe_of("3"), mesh_of()):
        raise KeyError("a")


def test_a_dry_run_states_the_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, mesh = recipe_of("0"), mesh_of()
    monkeypatch.setattr(device_memory, "free", lambda device: 3 * GIB)
    overview.print_memory([recipe], mesh)
    out = capsys.readouterr().out
    assert "3 free" in out and "needs" not in out
    found = memory.estimate(recipe, mesh)
    for size in (found.parameters, found.optimizer, found.peak, compiled_peak(recipe, mesh)):
        assert f"{size / GIB:.3g}" in out
    monkeypatch.setattr(device_memory, "free", lambda device: 1000)
    overview.print_memory([recipe], mesh)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("stage 0 (base) needs") and "all together (" in last
