"""The memory of a step: the estimate beside the compiler's figure, and what is said when it is short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import mistral_7b, qwen2_5_7b, small_hf
from fqs_jax.curriculum import resolve, row
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.planning import step_plan
from fqs_jax.runs import source
from fqs_jax.runtime import device_memory, sharding
from fqs_jax.runtime.device_memory import GIB
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupts
from fqs_jax.training import loop, memory, overview
from fqs_jax.training import step as step_lib
from fqs_jax.training.start import Run
from tests.tiny_runs import clock_config

SMALL = {
    "vocab_size": 512,
    "width": 64,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "mlp_dim": 176,
}
WITHIN = 1.25  # factor between the estimate and the compiler's peak


def recipe_of(number: str, changes: dict[str, Any] | None = None) -> Recipe:
    """A stage of configs/small_hf.py on a small model; 0 is plain training."""
    c = small_hf.get_config()
    c.model.update(SMALL)
    c.stage_0 = row("base", "next_token", steps=10)
    c.batch_size, c.data.seq_len = 4, 32
    c.update_from_flattened_dict(changes or {})
    return resolve.find(resolve.recipes(c, step_plan.architecture(c)), number)


def mesh_of(**sizes: int) -> Mesh:
    shape = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    return sharding.make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


def compiled_peak(recipe: Recipe, mesh: Mesh) -> int:
    program = step_lib.program(recipe, mesh)
    with jax.set_mesh(mesh):
        compiled = program.step.lower(program.state, program.batch, np.int32(0)).compile()
    used = device_memory.of_program(compiled, "cpu")
    assert used is not None
    return used.peak


# The estimate --------------------


@pytest.mark.parametrize(
    "number, changes",
    [
        ("0", {}),
        ("3", {"compute.position_chunk": 8}),
        ("3", {"compute.position_chunk": 0, "compute.remat": "full", "compute.vocab_chunk": 64}),
    ],
)
def test_the_estimate_is_near_the_compilers_peak(number: str, changes: dict[str, Any]) -> None:
    recipe, mesh = recipe_of(number, changes), mesh_of()
    ratio = memory.estimate(recipe, mesh).peak / compiled_peak(recipe, mesh)
    assert 1 / WITHIN < ratio < WITHIN


@pytest.mark.parametrize(
    "config, number, devices, gib",
    [
        (mistral_7b, "1", 4, 25.78),
        (mistral_7b, "4", 4, 16.86),
        (mistral_7b, "4", 8, 8.43),
        (qwen2_5_7b, "1", 4, 25.35),
        (qwen2_5_7b, "4", 4, 18.09),
        (qwen2_5_7b, "4", 8, 9.23),
    ],
)
def test_the_estimate_is_near_the_tpu_compilers_peaks(
    config: Any, number: str, devices: int, gib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peaks are those of the table in docs/scale.md, for slices of v5p and v5e chips."""
    monkeypatch.setattr(memory, "_item", lambda dtype, mesh: jnp.dtype(dtype).itemsize)
    c = config.get_config()
    recipe = resolve.find(resolve.recipes(c, step_plan.architecture(c)), number)
    ratio = memory.estimate(recipe, mesh_of(fsdp=devices)).peak / GIB / gib
    assert 1 / 1.1 < ratio < 1.1


def test_the_state_is_exact_and_cut_by_the_mesh() -> None:
    recipe = recipe_of("3")
    for mesh in (mesh_of(), mesh_of(fsdp=4), mesh_of(fsdp=2, tensor=2)):
        state = device_memory.of_arrays(step_lib.program(recipe, mesh).state)
        counters = 100  # bytes at most
        assert 0 <= state - memory.estimate(recipe, mesh).state < counters
    whole, cut = (memory.estimate(recipe, m) for m in (mesh_of(), mesh_of(fsdp=4)))
    assert cut.thoughts == whole.thoughts // 4 and cut.peak < whole.peak / 2


@pytest.mark.parametrize(
    "name, values",
    [
        ("compute.position_chunk", [32, 16, 8, 4]),
        ("compute.vocab_chunk", [0, 64]),
        ("microbatches", [1, 2, 4]),
        ("thought.position_fraction", [1.0, 0.5, 0.25]),
        ("compute.remat", ["none", "elementwise", "dots", "full"]),
        ("compute.param_dtype", ["float32", "bfloat16"]),
        ("data.seq_len", [64, 32, 16]),
        ("batch_size", [8, 4, 2]),
    ],
)
def test_every_setting_lowers_the_estimate(name: str, values: list[Any]) -> None:
    """Without chunks of positions, whose sums of gradients are larger than a step this small."""
    unchunked = {"compute.position_chunk": 0}
    mesh = mesh_of()
    peaks = [memory.estimate(recipe_of("3", unchunked | {name: v}), mesh).peak for v in values]
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < peaks[0]


# What would make it fit --------------------


def sizes_of(lines: list[str]) -> list[float]:
    return [float(re.findall(r"\(([\d.e+-]+) GiB\)", line)[0]) for line in lines]


def test_settings_are_named_with_the_peaks_that_they_lead_to() -> None:
    recipe, mesh = recipe_of("3", {"compute.position_chunk": 0}), mesh_of()
    now = memory.estimate(recipe, mesh).peak
    lines = memory.changes(recipe, mesh, room=int(0.8 * now))
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
    lines = memory.changes(recipe, mesh, room=1)
    assert "--config.microbatches=4 " in " ".join(lines) and lines[-1].startswith("all together (")
    *alone, together = sizes_of(lines)
    assert together < min(alone)


def test_estimates_are_scaled_by_what_the_compiler_found() -> None:
    recipe, mesh = recipe_of("3", {"compute.position_chunk": 0}), mesh_of()
    now = memory.estimate(recipe, mesh)
    once = sizes_of(memory.changes(recipe, mesh, 1, now.peak))
    assert once == sizes_of(memory.changes(recipe, mesh, 1))
    twice = sizes_of(memory.changes(recipe, mesh, 1, now.state + 2 * (now.peak - now.state)))
    assert all(b > a for a, b in zip(once, twice, strict=True))


def test_only_what_applies_is_named() -> None:
    """A plain step has no thoughts, and rows that the devices need are not cut into microbatches."""
    plain = " ".join(memory.changes(recipe_of("0"), mesh_of(), room=1))
    assert "position" not in plain and "microbatches=4" in plain
    spread = " ".join(memory.changes(recipe_of("0"), mesh_of(fsdp=4), room=1))
    assert "microbatches" not in spread
    tight = {"compute.remat": "full", "compute.vocab_chunk": 16, "microbatches": 4,
             "compute.param_dtype": "bfloat16"}  # fmt: skip
    assert memory.changes(recipe_of("0", tight), mesh_of(), room=1) == []


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
    with pytest.raises(UserError, match=r"stage 0 \(base\) needs .* GiB of a device that has"):
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
    memory.check_program(recipe, mesh, Step(90))  # and 10 of code; its arguments exist
    with pytest.raises(UserError, match="by estimate it needs, with --config"):
        memory.check_program(recipe, mesh, Step(91))
    monkeypatch.setattr(device_memory, "free", lambda device: None)
    memory.check_program(recipe, mesh, Step(10**15))


@pytest.mark.parametrize(
    "error, part",
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nframes"),
         "ran out of memory (RESOURCE_EXHAUSTED: Out of memory); by estimate it needs"),
        (MemoryError(), "ran out of memory; by estimate it needs"),
    ],
)  # fmt: skip
def test_running_out_of_memory_is_one_sentence(error: Exception, part: str) -> None:
    with pytest.raises(UserError) as caught, memory.explained(recipe_of("3"), mesh_of()):
        raise error
    line = str(caught.value)
    assert part in line and "--config.microbatches=4" in line and "\n" not in line


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), memory.explained(recipe_of("3"), mesh_of()):
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
