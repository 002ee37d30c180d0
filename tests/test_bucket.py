"""A bucket as the working directory, on an emulator of Google Cloud Storage (no network, no cloud)."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fqs_jax.data.rows import token_store
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import open_sources
from fqs_jax.data.tokenizer_training import train_sentencepiece
from fqs_jax.reporting import inventory, verification
from fqs_jax.runs import folders, loading, metrics_parts
from fqs_jax.runs.checkpoints import Checkpoints
from fqs_jax.runs.metrics_file import MetricsFile, read_events, read_rows
from fqs_jax.runtime import (
    buckets,
    compiled_programs,
    files,
    inputs,
    leases,
    local_copies,
    paths,
)
from fqs_jax.runtime.errors import UserError
from tests.emulator import as_another_process
from tests.tiny_runs import clock_config, run, run_alone, save_stage, sentences, start
from tests.tiny_states import abstract_state, assert_newest, assert_same, save_steps, state_at


@pytest.fixture
def root(bucket):
    """A working directory in the bucket."""
    return bucket


# Files and folders --------------------


def test_files_are_written_whole_and_read_by_the_same_functions(root):
    path = root / "a" / "run.json"
    with pytest.raises(UserError, match="no such file"):
        inputs.read_json(path)
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert inputs.read_json(path) == {"a": 2} and root.is_dir() and not (root / "b").exists()
    with pytest.raises(UserError, match="there is no such bucket"):
        files.write_text(paths.expand("gs://none/a"), "")
    with pytest.raises(UserError, match="there is no bucket none"):
        buckets.check_writable(paths.expand("gs://none/W"))
    buckets.check_writable(root)
    assert list(buckets.objects(root)) == ["a/run.json"]


def test_a_folder_is_whole_with_its_last_object(root):
    with files.new_folder(root) as folder:
        for name in ("config.json", "a.safetensors", "tokenizer.json"):
            (folder / name).write_text(name)
    written = buckets.objects(root)
    assert sorted(written, key=lambda name: int(written[name]["generation"]))[-1] == "config.json"
    assert len(written) == 3
    with pytest.raises(UserError, match="exists already"), files.new_folder(str(root)):
        pass
    files.write_text(root / ".unfinished", "")  # as a killed program leaves it
    buckets.write(root / "old", b"")
    with files.new_folder(root) as folder:
        (folder / "config.json").write_text("new")
    assert list(buckets.objects(root)) == ["config.json"]
    with pytest.raises(ValueError), files.new_folder(root.parent / "other") as folder:
        (folder / "config.json").write_text("{}")
        raise ValueError
    assert not (root.parent / "other").exists()


def test_a_copy_is_made_once_for_each_version(root):
    files.write_text(root / "a" / "1.txt", "one")
    files.write_text(root / "a" / "2.jsonl", "{}")
    first = local_copies.of(root / "a")
    assert (first / "1.txt").read_text() == "one" and first.name == "a"
    assert local_copies.of(root / "a") == first
    files.write_text(root / "a" / "1.txt", "two")
    assert local_copies.of(root / "a") != first
    assert local_copies.of(root / "a" / "1.txt").read_text() == "two"
    assert not local_copies.of(root / "none").exists()
    assert Path(local_copies.of_text(f"{root}/a/1.txt")).read_text() == "two"
    pattern = local_copies.of_text(f"{root}/a/*.txt")
    assert [path.name for path in Path(pattern).parent.glob("*")] == ["1.txt"]
    assert local_copies.of_text(f"tfds:{root}/a:train").endswith("/a:train")
    assert local_copies.of_text("tfds:name:train") == "tfds:name:train"
    with pytest.raises(UserError, match="no object matches"):
        local_copies.of_text(f"{root}/*.parquet")


def test_tokens_are_made_once_for_all_machines(root, tmp_path, monkeypatch):
    """prepare makes them in two parts, on machines with caches of their own; a third one copies them."""
    tokenizer = train_sentencepiece(sentences(200), tmp_path / "tokenizer", 300)
    files.write_text(root / "a.jsonl", "".join(f'{{"text": "{text}"}}\n' for text in sentences(60)))
    monkeypatch.setattr(token_store, "IN_MEMORY", 0)
    monkeypatch.setattr(token_store, "MIN_PIECE", 16)

    def on(machine, work, share):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        [(source, _)] = open_sources(f"{root}/a.jsonl", Options())
        return work(source, tokenizer, root / "cache", share)

    alone = on("other", lambda source, tokenizer, *_: token_store.tokenize(
        source, tokenizer, tmp_path / "cache"), None)  # fmt: skip
    assert on("a", token_store.prepare, (0, 2))[:2] == on("b", token_store.prepare, (1, 2))[:2]
    [folder] = {name.split("/")[1] for name in buckets.objects(root / "cache")}
    broken = root / "cache" / "tokens" / folder / "tokens_000001.npy"
    whole = buckets.read(broken)
    buckets.write(broken, b"half")
    encode, made = token_store._encode, []
    monkeypatch.setattr(
        token_store, "_encode", lambda *args: (made.append(args[1].start), encode(*args))[1]
    )
    shared = on("c", token_store.tokenize, (0, 8))
    assert made == [16] and buckets.read(broken) == whole
    assert shared.read(0, len(shared)).tolist() == alone.read(0, len(alone)).tolist()
    assert all(str(piece).startswith(str(tmp_path / "c")) for piece in shared.pieces)


# Leases --------------------


def test_an_object_is_created_once(root):
    assert buckets.create(root / "x", b"1") and not buckets.create(root / "x", b"2")
    assert buckets.create(root / "x", b"1")  # a repeated request of the one that made it
    assert buckets.read(root / "x") == b"1"


def test_a_second_run_is_refused_while_the_lease_is_renewed(root, quick, monkeypatch):
    with leases.held(root):
        with leases.held(root / "stage_0"):  # one lease for all of it
            assert list(buckets.objects(root / leases.FOLDER)) == ["000001.json"]
        as_another_process(monkeypatch)
        expected = rf"in use by process {os.getpid()} on {socket.gethostname()}, since 20"
        with pytest.raises(UserError, match=expected), leases.held(root):
            pass
        monkeypatch.undo()
    with leases.held(root):  # at once, because it was released
        assert leases.number(root / "stage_0") == 2


def test_a_run_that_slept_through_its_lease_writes_nothing_more(root, quick, monkeypatch):
    lease = leases._take(root)
    lease._ended.set()  # it no longer renews
    lease._thread.join()
    started = time.monotonic()
    with leases.held(root):
        assert time.monotonic() - started >= leases.DURATION
        files.write_text(root / "a", "new")
        monkeypatch.setattr(leases, "_held", [lease])  # the first one wakes
        with pytest.raises(UserError, match="was taken over by process .* nothing more is written"):
            files.write_text(root / "a", "old")
        monkeypatch.undo()
        assert inputs.read_text(root / "a") == "new"
        lease.release()
        files.write_text(root / "a", "newer")


# Metrics and checkpoints --------------------


def test_requests_of_a_log_interval_and_a_save(root, count):
    """docs/scale.md has them in a table."""
    with MetricsFile(root / "metrics.jsonl", 0) as file:
        count()
        for step in range(50):
            file.step(step, {"loss": 0.5})
        assert count() == 0
        file.flush()
        assert count() == 1
    with Checkpoints(root / "checkpoints") as saved:
        saved.save(1, *state_at(1), {})
        saved.wait()
        count()
        saved.save(2, *state_at(2), {})
        saved.wait()
        found = count()
    assert len(buckets.objects(root / "checkpoints" / "2")) <= 40 and found <= 220, found


def test_metrics_of_a_run_that_is_resumed(root, monkeypatch):
    monkeypatch.setattr(metrics_parts, "SIZE", 300)
    path = root / "metrics.jsonl"
    for first, steps in ((0, range(1, 9)), (4, range(5, 7))):
        with MetricsFile(path, first) as file:
            file.event("start", step=first)
            for step in steps:
                file.step(step, {"loss": step / 2})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in read_events(path, "start")] == [0, 4]


def test_a_damaged_checkpoint_is_noted_and_its_step_saved_again(root, capfd):
    folder = save_steps(root / "checkpoints", 3, 6, 9)
    assert folders.saved_steps(folder) == [9, 6]
    for name in buckets.objects(folder / "9" / "params"):
        buckets.write(folder / "9" / "params" / name, b"damaged")
    buckets.write(folder / "12" / "params" / "half", b"of a save that was killed")
    assert_newest(folder, 6)
    shown = capfd.readouterr().err
    assert "9 is damaged" in shown and "damaged.txt" in shown and "step 6 is used instead" in shown
    assert folders.saved_steps(folder) == [6] and (folder / "9" / "params").is_dir()
    with Checkpoints(folder) as saved:
        saved.save(9, *state_at(9), {"steps": 9})
    assert_newest(folder, 9)
    assert not (folder / "12").exists()


def test_no_run_saves_into_the_folder_of_another(root, quick):
    folder = root / "checkpoints"
    buckets.write(folder / "3-1" / "params" / "late", b"of a run that lost its lease")
    with leases.held(root):
        pass
    with leases.held(root):
        save_steps(folder, 3)
        assert folders.checkpoint(folder, 3).name == "3-2"
        buckets.write(folder / "3-1" / "params" / "later", b"of the same run")
        with Checkpoints(folder) as saved:
            assert_same(saved.restore(3, *abstract_state())[:2], state_at(3))


def test_inspect_reads_and_verifies_a_working_directory(root, environment):
    config = clock_config()
    save_stage(root, config, 0, step=4)
    save_stage(root, config, 0)
    with MetricsFile(root / "stage_0" / "metrics.jsonl", 0) as file:
        file.step(6, {"nll_base": 2.5})
    found = verification.verify(inventory.read(root))
    sizes = {name: int(one["size"]) for name, one in buckets.objects(root).items()}
    [stage] = found.stages
    assert (stage.step, stage.steps, stage.metrics["nll_base"]) == (6, 6, 2.5)
    assert found.bytes == sum(sizes.values()) > stage.bytes > stage.checkpoints[0].bytes > 10_000
    assert [one.step for one in stage.checkpoints] == [6, 4] and not list(found.damages())
    newest = folders.checkpoint(folders.checkpoint_folder(root, 0), 6)
    for name in buckets.objects(newest / "params"):
        buckets.write(newest / "params" / name, b"damaged")
    [damage] = verification.verify(inventory.read(root)).damages()
    assert damage.startswith(f"{newest} is damaged: ")
    files.write_text(newest / folders.DAMAGED, "as a run marks it")
    [stage] = inventory.read(root).stages
    assert stage.set_aside == (newest.name,) and [one.step for one in stage.checkpoints] == [4]
    for place, reason in ((root / "stage_0", "is no working directory"), (root / "x", "no folder")):
        with pytest.raises(UserError, match=reason):
            inventory.read(place)


# Compiled programs --------------------

COMPILE = """
import sys
import jax
from fqs_jax.runtime import compiled_programs, paths
compiled_programs.keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
jax.jit(lambda x: x + 1)(jax.numpy.ones(8))
compiled_programs.keep_in(paths.expand(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events.clear()
jax.jit(lambda x: (x * 2).cumsum())(jax.numpy.ones(8))
print(jax.config.jax_compilation_cache_dir, events.count("cache_hits"), events.count("cache_misses"))
"""


def test_a_restart_on_another_machine_compiles_nothing(root, environment, tmp_path):
    found = []
    for machine in ("a", "b", "c"):
        own = {"XDG_CACHE_HOME": str(tmp_path / machine), "JAX_COMPILATION_CACHE_DIR": ""}
        if machine == "c":  # where a user has chosen a folder
            own["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, str(root)],
            env=os.environ | environment | own,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
        folder, *counts = done.stdout.split()
        found.append((folder, *map(int, counts)))
    place = f"{root}/{compiled_programs.FOLDER}"
    programs = [name for name in buckets.objects(paths.expand(place)) if name.endswith("-cache")]
    assert len(programs) > 0
    assert found == [
        (place, 0, len(programs)),
        (place, len(programs), 0),
        (str(tmp_path), 0, len(programs)),
    ]


# A whole run --------------------


def test_a_run_that_is_killed_ends_as_an_undisturbed_local_one(root, environment, tmp_path):
    flags = ["--config=tiny", "--stage=0", "--max_steps=30", "--config.checkpoint_every=5"]
    flags += ["--config.log_every=1"]
    with start("launch", *flags, f"--workdir={root}", environment=environment) as killed:
        deadline = time.monotonic() + 120
        while (folders.latest_step(root / "stage_0" / "checkpoints") or 0) < 5:
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    run_alone("launch", *flags, f"--workdir={root}", environment=environment)
    run("launch", *flags, f"--workdir={tmp_path / 'W'}")
    rows = [read_rows(place / "stage_0" / "metrics.jsonl") for place in (root, tmp_path / "W")]
    for row in (*rows[0], *rows[1]):
        del row["time"]
    assert rows[0] == rows[1] and len(rows[0]) == 30
    ours, local = (loading.load(str(place), "0").params for place in (root, tmp_path / "W"))
    jax.tree.map(np.testing.assert_array_equal, ours, local)
