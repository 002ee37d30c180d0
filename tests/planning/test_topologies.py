"""Topologies: their figures, their devices, and what is said of those that do not exist."""

from __future__ import annotations

import importlib.util

import jax
import pytest

from fqs_jax.planning import chips, topologies
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import refusal

NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def test_a_device_of_v7x_has_half_of_what_a_chip_has() -> None:
    """Google's figures are per chip: 2307 TFLOP/s, 192 GiB at 7380 GB/s, links of 1200 GB/s both ways."""
    half = chips.TPUS["v7x"]
    assert (2 * half.flops, 2 * half.memory_bandwidth) == (2307e12, 7380e9)
    assert 2 * (2 * half.link_bandwidth) == 1200e9
    assert 0.97 * 192 < 2 * half.memory / 2**30 < 192


def test_links_are_those_of_one_direction() -> None:
    """Google's tables give both directions together, in GB/s: 400 (v5e), 1200 (v5p), 800 (v6e)."""
    both = {kind: 2 * chips.TPUS[kind].link_bandwidth / 1e9 for kind in ("v5e", "v5p", "v6e")}
    assert both == {"v5e": 400, "v5p": 1200, "v6e": 800}


@NEEDS_LIBTPU
@pytest.mark.parametrize(
    ("topology", "count"), [("v5e:2x2", 4), ("v6e:2x4", 8), ("v5p:2x2x1", 4), ("v7x:2x2x1", 8)]
)
def test_a_slice_has_the_devices_that_jax_will_see(topology: str, count: int) -> None:
    chip, devices = topologies.find(topology)
    assert chip is chips.TPUS[topology.split(":")[0]]
    assert len(devices) == count and {device.platform for device in devices} == {"tpu"}


@NEEDS_LIBTPU
def test_a_slice_that_nobody_offers_is_one_line() -> None:
    with pytest.raises(UserError, match="v7x:3x3x3: .*; choose from v5e:2x2") as error:
        topologies.find("v7x:3x3x3")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("topology", "part"),
    [
        ("v9:2x2", "choose from v5e:2x2"),
        ("v5e", "a v5e slice has 2 sides; choose from"),
        ("v5e:2x2x1", "has 2 sides"),
        ("v7x:3x3", "a v7x slice has 3 sides"),
        ("v7x:2x2x0", "has 3 sides"),
        ("tpu7x:2x2x1", "is not known; choose from"),
        ("cpu:0", "choose from"),
        ("cpu:99", "has 8 CPU devices already"),
        ("gpu:8", "does not say which GPU; choose from a100, h100, h200, such as h100:8"),
        ("h100", "give 1 to 8 GPUs of one machine, such as h100:8"),
        ("h100:0", "give 1 to 8 GPUs"),
        ("h100:x", "give 1 to 8 GPUs"),
        ("h200:16", "give 1 to 8 GPUs of one machine, such as h200:8"),
    ],
)
def test_topologies_that_are_not(topology: str, part: str) -> None:
    jax.devices()  # from here on the number of CPU devices is fixed
    with pytest.raises(UserError, match=part) as error:
        topologies.find(topology)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("topology", "extra"), [("v5e:2x2", "plan"), ("v7x:2x2x1", "plan"), ("h200:1", "plan-gpu")]
)
def test_a_missing_compiler_names_what_to_install(
    topology: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'fqs_jax\[{extra}\]'"):
        topologies.find(topology)


def test_the_command_refuses_in_one_line() -> None:
    assert "give 1 to 8 GPUs" in refusal("plan", "--topology=h100:0")
