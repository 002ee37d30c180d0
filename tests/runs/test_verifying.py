"""Verification of checkpoints: whole ones pass, whatever mesh saved them.

Damaged ones are in tests/runs/test_checkpoints_damage.py.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fqs_jax.runs import verifying
from fqs_jax.runs.checkpoints import Checkpoints
from tests.tiny_states import save_steps, state_at


def verify(step):
    """The sizes that are reported while a checkpoint is verified, and the sum that was announced."""
    described = verifying.described_arrays(step)
    sizes = []
    verifying.check_arrays(step, described, sizes.append)
    return sizes, verifying.count_bytes(described)


def test_every_array_of_a_whole_checkpoint_is_read(tmp_path, monkeypatch):
    save_steps(tmp_path / "c", 3)
    monkeypatch.chdir(tmp_path)
    sizes, announced = verify(Path("c/3"))
    expected = [leaf.nbytes for leaf in jax.tree.leaves(state_at(3))]
    assert sorted(sizes) == sorted(expected) and announced == sum(expected)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (virtual) devices")
def test_one_device_verifies_what_a_mesh_has_saved(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:8]), ("fsdp",))
    params, optimizer = state_at(5)
    place = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    params["lm"]["w"] = jax.device_put(params["lm"]["w"], place)
    with Checkpoints(tmp_path / "c") as saved:
        saved.save(5, params, optimizer, {})
    assert sum(verify(tmp_path / "c" / "5")[0])
