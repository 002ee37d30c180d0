"""Checkpoints of two processes with two devices each, which meet over the loopback."""

import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fqs_jax.runs.checkpoints import Checkpoints
from fqs_jax.runtime import doors, orbax_errors
from fqs_jax.runtime import processes as processes_lib
from fqs_jax.runtime.errors import UserError
from tests.conftest import REPO
from tests.runs.test_checkpoints_damage import cut_arrays
from tests.tiny_states import assert_newest, save_steps, state_at

PROCESSES = 2

pytestmark = pytest.mark.slow


def sharded(tree):
    """An abstract tree, its last axis split over the devices of all processes."""
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))

    def place(x):
        spec = P(*[None] * (x.ndim - 1), "fsdp") if x.ndim else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def global_state(step):
    """Every process has all numbers, and gives those that belong on its devices."""

    def place(x, like):
        numbers = np.asarray(x)
        return jax.make_array_from_callback(x.shape, like.sharding, lambda index: numbers[index])

    return jax.tree.map(place, state_at(step), sharded(state_at(step)))


def assert_shards(state, step):
    """Each shard that is here has the right place and, to the bit, the right numbers."""
    expected = state_at(step)[: len(state)]
    trees = (state, sharded(expected), expected)
    for array, wanted, numbers in zip(*map(jax.tree.leaves, trees), strict=True):
        assert array.sharding == wanted.sharding and array.dtype == wanted.dtype
        for shard in array.addressable_shards:
            assert np.asarray(shard.data).tobytes() == np.asarray(numbers)[shard.index].tobytes()


def goes_on_from(saved, step):
    found = saved.newest(*sharded(state_at(0)))
    assert found is not None and found[0] == step and found[3] == {"steps": step}
    assert_shards(found[1:3], step)


def save(saved, step):
    saved.save(step, *global_state(step), {"steps": step})


# What the processes do, by name --------------------


def exchange(root):
    """Two processes restore a checkpoint of one, and save one for a single process to restore."""
    with Checkpoints(root / "one") as saved:
        goes_on_from(saved, 9)
        assert_shards(saved.restore_params(6, sharded(state_at(0)[0]))[:1], 6)
        save(saved, 12)
        save(saved, 15)
        goes_on_from(saved, 15)


def fall_back(root):
    """Damage to a file, and damage that only process 1 sees: both use the same step."""
    with Checkpoints(root / "cut") as saved:
        goes_on_from(saved, 6)
        save(saved, 9)
    with Checkpoints(root / "half") as saved:
        if jax.process_index() == 1:
            read = saved._reader.restore

            def stumble(path, args):
                if path.name == "9" and "params" in args:
                    raise OSError(5, "Input/output error")
                return read(path, args=args)

            saved._reader.restore = stumble
        goes_on_from(saved, 6)
        save(saved, 9)
    with Checkpoints(root / "bad") as saved:
        try:
            goes_on_from(saved, 6)
        except UserError as error:
            assert str(error).startswith(f"every checkpoint in {root / 'bad'} is damaged: 9 (")
        else:
            raise AssertionError("was not refused")


def differ(root):
    """A checkpoint that only process 1 may not read is refused by both, and not renamed."""
    own, said = (
        (OSError(5, "Input/output error"), "process 1 cannot read its part; see its error"),
        (PermissionError(13, "Permission denied"), "cannot read step 9 of "),
    )[jax.process_index()]

    def stumble(path, args):
        raise own

    with Checkpoints(root / "differ") as saved:
        saved._reader.restore = stumble
        for restore in (
            lambda: saved.newest(*sharded(state_at(0))),
            lambda: saved.restore_params(9, sharded(state_at(0)[0]), move_aside=True),
        ):
            try:
                restore()
            except UserError as error:
                assert str(error).startswith(said)
            else:
                raise AssertionError("was not refused")


def work(root):
    exchange(root)
    fall_back(root)
    differ(root)


def fail(root):
    """Process 1 cannot write its part."""
    with Checkpoints(root / "one") as saved:
        save(saved, 12)
        saved.wait()
        if jax.process_index() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        save(saved, 15)
        saved.wait()
        raise AssertionError("the save did not fail")


def main():
    task, root, process, port = sys.argv[1:]
    orbax_errors.silence()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)

    def work_of_this_process():
        processes_lib.initialize(
            coordinator=f"127.0.0.1:{port}", num_processes=PROCESSES, process_id=int(process)
        )
        assert jax.device_count() == 2 * PROCESSES
        globals()[task](Path(root))

    doors.run(work_of_this_process)


# The tests --------------------


def run(task, root):
    """Exit codes and standard errors of both processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    program = "from tests.runs.test_checkpoints_processes import main; main()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, task, str(root), str(process), str(port)],
            cwd=REPO,
            env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
            stdout=subprocess.DEVNULL,  # Gloo greets there
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(PROCESSES)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """The folder in which two processes did all of `work`, and what each wrote to stderr."""
    root = tmp_path_factory.mktemp("processes")
    for name in ("one", "cut", "half", "bad", "differ"):
        save_steps(root / name, 6, 9)
    cut_arrays(root / "cut" / "9")
    cut_arrays(root / "bad" / "9")
    cut_arrays(root / "bad" / "6")
    codes, errors = run("work", root)
    assert codes == [0, 0], "\n".join(errors)
    return root, errors


def test_one_process_restores_what_two_saved(after):
    root, _ = after
    assert_newest(root / "one", 15)
    assert {"12", "15"} == {p.name for p in (root / "one").iterdir()}


def test_two_processes_agree_on_what_is_damaged(after):
    root, errors = after
    first, second = errors[0].splitlines()
    tail = "it is now damaged_9, and step 6 is used instead"
    assert re.fullmatch(rf"checkpoint {root}/cut/9 is damaged: .+; {tail}", first)
    assert second == f"checkpoint {root}/half/9 is damaged: process 1 cannot read its part; {tail}"
    assert errors[1] == ""
    for name in ("cut", "half"):
        assert (root / name / "damaged_9").is_dir()
        assert_newest(root / name, 9)  # saved anew by both
    for name in ("bad", "differ"):
        assert not (root / name / "damaged_9").exists()


def test_a_process_that_cannot_write_says_so_and_ends_the_run(tmp_path):
    save_steps(tmp_path / "one", 6, 9)
    codes, errors = run("fail", tmp_path)
    assert codes == [2, 2]
    assert re.match("error: process 1 on .* stopped with an error: see its line\n$", errors[0])
    assert errors[1].startswith(f"error: cannot save step 15 in {tmp_path}/one: ")
    assert "File too large" in errors[1] and errors[1].count("\n") == 1
    assert_newest(tmp_path / "one", 12)
