"""The estimate of a step's memory beside the compilers' figures, for stages of a small model."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from configs import mistral_7b, qwen2_5_7b
from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.stage import row
from fqs_jax.planning import step_plan
from fqs_jax.runtime import device_memory
from fqs_jax.runtime.device_memory import GIB
from fqs_jax.training import memory
from fqs_jax.training import step as step_lib
from tests.small_steps import compiled_peak, mesh_of, recipe_of

WITHIN = 1.25  # factor between the estimate and the compiler's peak


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


def test_a_student_of_last_positions_needs_less() -> None:
    """It reads the head once in a row, which the compiler's peak shows too."""
    student = {"stage_4": row("asked", "distill", start=3, teacher=3, steps=9), "data.rows": "crop"}
    at = {"compute.vocab_chunk": 0, "model.vocab_size": 4096, "distill.top_k": 4} | student
    everywhere, last = (
        recipe_of("4", at | {"distill.positions": positions}) for positions in ("all", "last")
    )
    peaks = [compiled_peak(recipe, mesh_of()) for recipe in (everywhere, last)]
    estimates = [memory.estimate(recipe, mesh_of()).peak for recipe in (everywhere, last)]
    assert peaks[1] < peaks[0] and estimates[1] < estimates[0]
    assert 1 / WITHIN < estimates[1] / peaks[1] < WITHIN


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
