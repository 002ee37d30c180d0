"""GPUs to compile for: their figures, the compiler's description of them, and a step."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from fqs_jax.planning import gpus, printed, step_plan
from fqs_jax.runtime.device_memory import GIB
from tests.planning.test_step_plan import COMMAND, small_case, small_plan
from tests.tiny_runs import refusal, run

NEEDS_PLUGIN = pytest.mark.skipif(not gpus.is_installed(), reason="JAX has no CUDA plugin here")


def test_figures_are_those_of_the_data_sheets() -> None:
    """Tera-FLOP/s without sparsity, TB/s, and GB/s of NVLink in both directions."""
    figures = {
        kind: (gpu.flops / 1e12, gpu.memory_bandwidth / 1e12, 2 * gpu.link_bandwidth / 1e9)
        for kind, gpu in gpus.GPUS.items()
    }
    assert figures == {
        "a100": (312, 2.039, 600),
        "h100": (989, 3.35, 900),
        "h200": (989, 4.8, 900),
    }
    sizes = {kind: round(gpu.device_memory / GIB, 1) for kind, gpu in gpus.GPUS.items()}
    assert sizes == {"a100": 79.3, "h100": 79.1, "h200": 139.8}


def test_the_compiler_is_told_each_figure_once() -> None:
    text = gpus.description(gpus.GPUS["h100"])
    names = re.findall(r"(\w+):", text)
    assert len(names) - names.count("major") - names.count("minor") == len(
        set(names) - {"major", "minor"}
    )
    for field in ("core_count: 132", "memory_bandwidth: 3350000000000", "{ major: 9 }"):
        assert field in text


def test_a_step_that_needs_more_than_jax_takes_by_default_says_so() -> None:
    chip = gpus.GPUS["h100"].chip
    plan = dataclasses.replace(small_plan(small_case("4")), chip=chip)
    few, more, most = (dataclasses.replace(plan, needed=x * GIB) for x in (50.0, 65.0, 75.0))
    assert printed.verdict(few, []) == "fits (50.00 of 71.20 GiB a device)"
    assert printed.verdict(more, []) == (
        "fits (65.00 of 71.20 GiB a device) with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9; "
        "by default JAX takes 59.33 GiB"
    )
    assert not most.fits


def test_the_estimate_divides_by_the_figures_of_the_device() -> None:
    chip, shares = gpus.GPUS["a100"].chip, step_plan.Utilisation()
    times = step_plan.estimate(chip, flops=312e12, state=2.039e12, moved=300e9)
    assert times.compute == pytest.approx(1 / shares.compute)
    assert times.links == pytest.approx(1 / shares.links)
    assert times.memory == pytest.approx((2.039e12 + 600e9) / 2.039e12 / shares.memory)


@pytest.mark.slow
@NEEDS_PLUGIN
def test_a_step_is_compiled_for_gpus() -> None:
    done = run("plan", *COMMAND, "--stage=4", "--topology=h100:8", "--json", "--links")
    record = json.loads(done.stdout)
    assert (
        record["fits"]
        and record["devices"] == 8
        and record["chip"]["name"].startswith("NVIDIA H100")
    )
    memory = record["memory"]
    # A GPU's compiler reports no peak: it is the sum of what exists (runtime/device_memory.py).
    assert memory["peak"] == memory["arguments"] + memory["temporaries"] + memory["outputs"] + (
        memory["code"] - memory["aliased"]
    )
    assert record["collectives"]["all-gather"]["bytes"] > 0 and done.stderr == ""


@NEEDS_PLUGIN
@pytest.mark.skipif(gpus.is_installed("nvidia.cudnn"), reason="cuDNN is here")
def test_attention_of_a_library_that_is_missing_is_one_line() -> None:
    changes = "--config.model.head_dim=64", "--config.compute.attention=cudnn", "--stage=4"
    assert "can only be planned with cuDNN" in refusal(
        "plan", *COMMAND, *changes, "--topology=h100:1"
    )
