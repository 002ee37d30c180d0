"""Training whole stages in this process, on a model whose steps take a millisecond."""

import dataclasses
import json
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax.curriculum import objective, resolve
from fqs_jax.data import corpus
from fqs_jax.objectives import metrics as metrics_lib
from fqs_jax.objectives import plain
from fqs_jax.runs import checkpoints, folders, source
from fqs_jax.runs.metrics_file import read_rows
from fqs_jax.runtime import locks, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupted, Interrupts
from fqs_jax.training import loop, optimizer, start, teacher_scores
from fqs_jax.training import step as step_lib
from tests.tiny_runs import clock_config, rows_without_time, save_stage

pytestmark = pytest.mark.usefixtures("steps_made_once")
KEY = jax.random.key(0)


def command(number):
    return f"launch --stage={number}"


def train_stage(root, config, number, interrupts=None):
    run = run_of(root, config, interrupts)
    loop.run_stage(run, stage_of(run, number))


def run_of(root, config, interrupts=None):
    _, tokenizer = source.prepare(root, config)
    mesh = sharding.single_device()
    return start.Run(root, config, tokenizer, mesh, interrupts or Interrupts(), command)


def stage_of(run, number):
    model = source.read_model(folders.source_folder(run.root), run.config)
    return resolve.find(resolve.recipes(run.config, model), str(number))


def checkpoint(root, config, number):
    """Step, parameters and optimiser state of a stage's newest checkpoint, as numpy arrays."""
    folder = folders.stage_folder(root, number)
    stage, _ = folders.read_run(root, number)
    model = source.read_model(folders.source_folder(root), config)
    state = step_lib.program(resolve.recipe(config, stage, model), sharding.single_device()).state
    with checkpoints.Checkpoints(folder / "checkpoints") as saved:
        step = folders.latest_step(folder / "checkpoints")
        restored = saved.restore(step, *state)
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(restored[:2])]


def assert_same_stage(root, other, config, number):
    """Bit-identical parameters, optimiser state and metrics."""
    step, leaves = checkpoint(root, config, number)
    other_step, other_leaves = checkpoint(other, config, number)
    assert step == other_step
    for a, b in zip(leaves, other_leaves, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape and a.tobytes() == b.tobytes()
    rows, other_rows = [
        [
            row
            for row in rows_without_time(r / f"stage_{number}/metrics.jsonl")
            if "event" not in row
        ]
        for r in (root, other)
    ]
    assert rows == other_rows and len(rows) == step


BEFORE = 2  # looks for a signal before the first step: before and after compiling it


class SignalAt(Interrupts):
    """Interrupts whose signal has come when it is looked for the n-th time, or a crash in its place."""

    def __init__(self, look: int, crash: bool = False):
        self._looks_left, self._crash = look, crash
        super().__init__()

    @property
    def signum(self) -> int | None:
        self._looks_left -= 1
        if self._looks_left <= 0 and self._crash:
            raise RuntimeError("killed")
        return signal.SIGTERM if self._looks_left <= 0 else None

    @signum.setter
    def signum(self, value: int | None) -> None:
        assert value is None


@pytest.fixture(scope="module")
def config():
    return clock_config({"stage_0.steps": 40, "checkpoint_every": 2, "max_bad_steps": 3})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config, steps_made_once):
    """All stages trained without an interruption."""
    root = tmp_path_factory.mktemp("whole") / "W"
    for number in range(4):
        train_stage(root, config, number)
    return root


@pytest.fixture
def begun(tmp_path, whole):
    """A copy without the stage that is asked for."""

    def make(number):
        root = shutil.copytree(whole, tmp_path / "W")
        shutil.rmtree(root / f"stage_{number}")
        return root

    return make


def test_loss_falls_and_every_step_has_a_row(whole):
    rows = read_rows(whole / "stage_0" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    losses = [row["loss"] for row in rows]
    assert losses[0] == pytest.approx(math.log(17), abs=0.1)  # knows nothing of 17 symbols
    assert np.mean(losses[-5:]) < losses[0] - 0.5
    assert rows[-1]["tokens"] == 40 * 2 * 16 and rows[-1]["skipped_steps"] == 0
    assert rows[-1]["time"]["tokens_per_second"] > 0


def test_rows_have_what_their_objective_tells(whole):
    first = json.loads((whole / "stage_1/metrics.jsonl").read_text().splitlines()[0])
    assert first["event"] == "start" and first["stage"] == "think-5-2" and first["step"] == 0
    assert first["parameters"] > 1000 and first["flops_per_step"] > 1e5
    assert first["time"]["compile_seconds"] > 0
    common = {"step", "loss", "nll_base", "learning_rate", "tokens", "time", "grad_norm/lm"}
    common |= {"skipped_steps", "skipped_in_a_row"}
    rewards = {"policy_loss", "reward_mean", "reward_std", "reward_positive"}
    thinks = {"nll_mixed", "advantage_mean", "thought_entropy", "mixing_weight_mean"}
    thinks |= {"nll_with_minus_without", "grad_norm/talk_head", "grad_norm/marks"}
    expected = {0: common, 1: common | rewards | thinks}
    expected[3] = common | rewards | {"nll_teacher_minus_student"}
    for number, names in expected.items():
        rows = read_rows(whole / f"stage_{number}" / "metrics.jsonl")
        assert all(row.keys() == names for row in rows)
        assert all(isinstance(v, int | float | dict) for row in rows for v in row.values())


@pytest.mark.parametrize("number", [1, 3])
def test_an_interrupted_stage_ends_like_an_uninterrupted_one(whole, begun, config, number):
    root = begun(number)
    stage = f"stage {number} .*saved at step 2 of 6; run the same command again"
    with pytest.raises(Interrupted, match=stage) as stop:
        train_stage(root, config, number, SignalAt(BEFORE + 2))
    assert stop.value.signum == signal.SIGTERM
    assert checkpoint(root, config, number)[0] == 2
    with pytest.raises(Interrupted, match="saved at step 5 of 6"):
        train_stage(root, config, number, SignalAt(BEFORE + 3))
    train_stage(root, config, number)
    assert_same_stage(root, whole, config, number)
    train_stage(root, config, number)  # nothing is left to do
    assert_same_stage(root, whole, config, number)


@pytest.mark.parametrize("look", [1, 2])
def test_an_interrupt_before_the_first_step(begun, whole, config, look):
    root = begun(1)
    with pytest.raises(Interrupted, match="is at step 0 of 6; run the same command again"):
        train_stage(root, config, 1, SignalAt(look))
    assert folders.latest_step(root / "stage_1" / "checkpoints") is None
    train_stage(root, config, 1)
    assert_same_stage(root, whole, config, 1)


def test_checkpoints_by_time(begun, whole):
    """Overdue at every look: a save, and one step later none yet."""
    root = begun(1)
    times = {"checkpoint_every": 100, "checkpoint_minutes": 1e-9, "keep_checkpoints": 9}
    config = clock_config({"stage_0.steps": 40, "max_bad_steps": 3} | times)
    train_stage(root, config, 1)
    folder = root / "stage_1" / "checkpoints"
    assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == [2, 4, 6]
    assert_same_stage(root, whole, config, 1)


@pytest.mark.parametrize("large, expected", [(2**28, {None, 2, 4}), (0, {None})])
def test_the_next_step_waits_for_the_save_of_a_large_state(
    begun, config, monkeypatch, large, expected
):
    """On CPUs, where copies of the state and temporaries of the step would share the memory."""
    pending = set()
    monkeypatch.setattr(loop, "LARGE_STATE", large)
    monkeypatch.setattr(checkpoints.Checkpoints, "check", lambda saved: pending.add(saved._saving))
    train_stage(begun(1), config, 1)
    assert pending == expected


def test_a_killed_stage_ends_like_an_uninterrupted_one(whole, begun, config):
    root = begun(1)
    with pytest.raises(RuntimeError, match="killed"):
        train_stage(root, config, 1, SignalAt(BEFORE + 5, crash=True))
    rows = read_rows(root / "stage_1" / "metrics.jsonl")
    assert checkpoint(root, config, 1)[0] == 4 and rows[-1]["step"] == 5
    with (root / "stage_1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train_stage(root, config, 1)
    assert_same_stage(root, whole, config, 1)


def test_an_interrupt_inside_teacher_scoring(whole, begun, config, monkeypatch):
    """Scores are kept piece by piece, and are the same however they are cut."""
    monkeypatch.setattr(teacher_scores, "PIECE", 2)
    root = begun(3)
    with pytest.raises(Interrupted, match="teacher scores saved up to batch 4 of 6; run the same"):
        train_stage(root, config, 3, SignalAt(2))
    folder = root / "stage_3" / "teacher"
    pieces = sorted(folder.glob("*.npy"))
    assert [p.name for p in pieces] == [
        "batches_0000000_0000002.npy",
        "batches_0000002_0000004.npy",
    ]
    kept = [piece.stat().st_mtime_ns for piece in pieces]
    assert folders.latest_step(root / "stage_3" / "checkpoints") is None
    train_stage(root, config, 3)
    assert_same_stage(root, whole, config, 3)
    assert kept == [piece.stat().st_mtime_ns for piece in pieces]


def test_teacher_scores_are_made_again_for_other_rows(tmp_path, whole, config, monkeypatch):
    monkeypatch.setattr(teacher_scores, "PIECE", 6)
    root = shutil.copytree(whole, tmp_path / "W")
    shutil.rmtree(root / "stage_3")
    train_stage(root, config, 3)
    piece = root / "stage_3" / "teacher" / "batches_0000000_0000006.npy"
    scores = np.load(piece)["teacher_log_prob"]
    assert scores.shape == (6 * 2, 16 - 1) and scores.max() < 0
    for changes in ({}, {"data.clock.direct": 9.0}, {"batch_size": 3}, {"data.seq_len": 14}):
        other = clock_config({"stage_0.steps": 40} | changes)
        run = dataclasses.replace(run_of(root, config), config=other)
        data = corpus.dataset(other.data, run.tokenizer, other.batch_size, other.seed, 3)
        given = teacher_scores.teacher_scores(run, stage_of(run, 3), data)["teacher_log_prob"]
        again = np.load(piece)["teacher_log_prob"]
        assert np.array_equal(again, scores) == (not changes)
        np.testing.assert_array_equal(given, again)
        assert given.shape == (6 * other.batch_size, other.data.seq_len - 1)


def test_renewed_marks_of_a_teacher_are_stored_at_its_own_scale(tmp_path, whole, config):
    """Its thoughts read them at that scale, whatever the student's config says."""

    def scores(folder, **changes):
        root = shutil.copytree(whole, tmp_path / folder, ignore=shutil.ignore_patterns("stage_3"))
        renewing = {"stage_0.steps": 40, "thought.reset_marks_at_eval": True} | changes
        run = dataclasses.replace(run_of(root, config), config=clock_config(renewing))
        data = corpus.dataset(run.config.data, run.tokenizer, run.config.batch_size, 0, 3)
        return teacher_scores.teacher_scores(run, stage_of(run, 3), data)["teacher_log_prob"]

    scale = config.thought.embedding_scale
    other = scores("other", **{"thought.embedding_scale": scale / 25})
    np.testing.assert_allclose(other, scores("same"), rtol=1e-4)


def test_what_a_stage_is_made_from_is_compared(tmp_path, whole, config):
    """A stage is not trained on, and made anew does not fit, once others were made from it."""
    root = shutil.copytree(whole, tmp_path / "W")
    longer = clock_config({"stage_0.steps": 42, "checkpoint_every": 2, "max_bad_steps": 3})
    with pytest.raises(
        UserError, match=r"at step 40 and train to 42, but stage 1 was made from step 40"
    ):
        train_stage(root, longer, 0)
    assert checkpoint(root, config, 0)[0] == 40
    for number in (1, 3):  # which start from it
        shutil.rmtree(root / f"stage_{number}")
    train_stage(root, longer, 0)
    other = clock_config(
        {
            "stage_0.steps": 40,
            "checkpoint_every": 2,
            "max_bad_steps": 3,
            "stage_1.learning_rate": 2e-2,
        }
    )
    root = shutil.copytree(whole, tmp_path / "V")
    before = json.loads((root / "stage_3" / "run.json").read_text())["made_from"]["2"]
    for number in (1, 2):
        shutil.rmtree(root / f"stage_{number}")
        train_stage(root, other, number)
    with pytest.raises(UserError, match=r"made_from.2.lineage="):
        train_stage(root, other, 3)
    assert before["step"] == 6


def test_a_damaged_finished_stage_can_be_made_again(begun, whole, config, capfd):
    """Found when the next stage starts from it; the same command as ever puts it right."""
    root = begun(2)
    for path in (root / "stage_1/checkpoints/6/params").rglob("d/*"):
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    with pytest.raises(UserError, match="cannot restore step 6 .* train that stage again"):
        train_stage(root, config, 2)
    assert "it is now damaged_6" in capfd.readouterr().err
    with pytest.raises(UserError, match="stage 1 .* is at step 4 of 6; finish it with: launch"):
        train_stage(root, config, 2)
    for number in (1, 2):
        train_stage(root, config, number)
        assert_same_stage(root, whole, config, number)


# Where a stage starts --------------------


def start_of(root, config, number):
    run = run_of(root, config)
    recipe = stage_of(run, number)
    state = step_lib.program(recipe, run.mesh).state
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return start.starting_params(run, recipe, shardings.params)


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def random_stages(tmp_path_factory):
    root, config = tmp_path_factory.mktemp("random") / "W", clock_config()
    saved = {number: save_stage(root, config, number, seed=number) for number in (0, 1, 2)}
    return root, saved


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_reset_switches(random_stages, marks, head):
    root, saved = random_stages
    switches = {"thought.reset_marks_on_load": marks, "thought.reset_talk_head_on_load": head}
    params = start_of(root, clock_config(switches), 2)
    before, now = saved[1]["thought"], params["thought"]
    assert_same(params["lm"], saved[1]["lm"])
    for layer in ("hidden_1", "hidden_2"):
        assert_same(now["talk_head"][layer], before["talk_head"][layer])
    out = now["talk_head"]["out"]
    assert_same(out, jax.tree.map(jnp.zeros_like, out) if head else before["talk_head"]["out"])
    config = clock_config()
    model, tokenizer = source.prepare(root, config)
    fresh = source.fresh_marks(config, model, params["lm"], tokenizer)
    expected = fresh if marks else {name: before[name] for name in ("start", "end")}
    assert_same({name: now[name] for name in ("start", "end")}, expected)


def test_kept_marks_are_the_same_to_the_network_at_another_scale(random_stages):
    root, saved = random_stages
    stored_at = clock_config().thought.embedding_scale
    kept = {"thought.reset_marks_on_load": False, "thought.embedding_scale": stored_at / 4}
    now = start_of(root, clock_config(kept), 2)["thought"]
    for name in ("start", "end"):
        assert_same(now[name], 4 * saved[1]["thought"][name])


def test_a_thinking_stage_after_a_plain_one_has_a_fresh_head(random_stages):
    root, saved = random_stages
    params = start_of(root, clock_config({"thought.reset_marks_on_load": False}), 1)
    assert_same(params["lm"], saved[0]["lm"])
    assert not np.any(params["thought"]["talk_head"]["out"]["kernel"])
    hidden = params["thought"]["talk_head"]["hidden_1"]["kernel"]
    assert np.std(hidden) == pytest.approx(0.02, rel=0.2)


def test_a_plain_stage_after_a_thinking_one_drops_the_thoughts(random_stages):
    root, saved = random_stages
    assert_same(start_of(root, clock_config({"stage_3.start": 2}), 3), {"lm": saved[2]["lm"]})


def test_a_first_stage_starts_from_the_initial_model(random_stages):
    root, _ = random_stages
    config = clock_config()
    model, _ = source.prepare(root, config)
    assert_same(start_of(root, config, 0), source.initial_params(root, config, model))


# What stops a stage --------------------


def test_a_missing_or_unfinished_start_names_the_command(tmp_path):
    root, config = tmp_path / "W", clock_config()
    for number, missing in ((1, 0), (3, 0)):
        with pytest.raises(
            UserError, match=f"no checkpoint of stage {missing}; make it with: launch"
        ):
            train_stage(root, config, number)
        assert not (root / f"stage_{number}").exists()
    save_stage(root, config, 0)
    with pytest.raises(UserError, match="no checkpoint of stage 2; make it with: launch --stage=2"):
        train_stage(root, config, 3)  # the teacher
    save_stage(root, config, 1, step=4)
    with pytest.raises(UserError, match="stage 1 in .* is at step 4 of 6; finish it with: launch"):
        train_stage(root, config, 2)
    assert not (root / "stage_2").exists()


def test_a_changed_config_on_resume_is_named(begun, config):
    root = begun(1)
    with pytest.raises(Interrupted):
        train_stage(root, config, 1, SignalAt(BEFORE + 2))
    other = clock_config({"stage_0.steps": 40, "thought.temperature": 0.5})
    with pytest.raises(UserError, match="config.thought.temperature=1.0, now it is 0.5"):
        train_stage(root, other, 1)
    assert checkpoint(root, config, 1)[0] == 2


def square(params, batch, key):
    """A loss with the batch's factor in it, NaN where that is."""
    del key
    loss = batch["factor"] * jnp.sum(jnp.square(params["lm"]["w"]))
    return loss, {"nll_base": metrics_lib.scalar(loss)}


def test_a_step_without_finite_gradients_changes_nothing():
    transform = optimizer.make(clock_config().optimizer, 0.1, 10)
    step = jax.jit(step_lib.make_step(square, transform, KEY))
    params = {"lm": {"w": jnp.arange(1.0, 4.0)}}
    state = step_lib.State(params, transform.init(params))
    for number, (factor, in_a_row, skipped) in enumerate(
        [(1.0, 0, 0), (math.nan, 1, 1), (math.inf, 2, 2), (1.0, 0, 2), (math.nan, 1, 3)]
    ):
        before = state
        state, metrics = step(state, {"factor": jnp.float32(factor)}, number)
        assert (metrics["skipped_in_a_row"], metrics["skipped_steps"]) == (in_a_row, skipped)
        if math.isfinite(factor):
            if number:  # the warm-up begins at rate 0
                assert (state.params["lm"]["w"] != before.params["lm"]["w"]).all()
        else:
            assert_same(state.params, before.params)
            assert_same(state.optimizer.inner_state, before.optimizer.inner_state)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_bad_even_with_finite_gradients(bad):
    def loss_with_constant(params, batch, key):
        loss, metrics = square(params, batch, key)
        return loss + jax.lax.stop_gradient(batch["constant"]), metrics

    transform = optimizer.make(clock_config().optimizer, 0.1, 10)
    step = jax.jit(step_lib.make_step(loss_with_constant, transform, KEY))
    params = {"lm": {"w": jnp.arange(1.0, 4.0)}}
    state = step_lib.State(params, transform.init(params))
    batch = {"factor": jnp.float32(1), "constant": jnp.float32(bad)}
    after, metrics = step(state, batch, 0)
    assert metrics["skipped_steps"] == 1 and math.isfinite(metrics["grad_norm/lm"])
    assert_same(after.params, state.params)
    assert_same(after.optimizer.inner_state, state.optimizer.inner_state)


def test_a_gradient_norm_that_overflows_is_bad():
    transform = optimizer.make(clock_config().optimizer, 0.1, 10)
    step = jax.jit(step_lib.make_step(square, transform, KEY))
    params = {"lm": {"w": jnp.full(3, 1e-2)}}
    state = step_lib.State(params, transform.init(params))
    _, metrics = step(state, {"factor": jnp.float32(1e30)}, 0)
    assert math.isinf(metrics["grad_norm/lm"]) and metrics["skipped_steps"] == 1


def bad_at(monkeypatch, root, config, numbers):
    """Make the losses of some steps NaN by the key of the step, which only depends on its number."""
    model, _ = source.prepare(root, config)
    stage = jax.random.fold_in(jax.random.key(config.seed), 0)
    bad = jnp.stack([jax.random.key_data(jax.random.fold_in(stage, n - 1)) for n in numbers])

    def loss(params, batch, key):
        loss, metrics = plain.next_token_loss(params, batch, key, model)
        is_bad = (jax.random.key_data(key) == bad).all(-1).any()
        factor = jnp.where(is_bad, jnp.nan, 1.0)
        return loss * factor, {
            name: m._replace(total=m.total * factor) for name, m in metrics.items()
        }

    monkeypatch.setattr(objective, "loss_function", lambda *_, **__: loss)


def test_a_bad_step_now_and_then_is_skipped_and_told(tmp_path, monkeypatch, capfd):
    config = clock_config({"stage_0.steps": 10, "max_bad_steps": 3, "checkpoint_every": 4})
    bad_at(monkeypatch, tmp_path / "W", config, [1, 4, 5, 9])
    train_stage(tmp_path / "W", config, 0)
    path = tmp_path / "W/stage_0/metrics.jsonl"
    rows = read_rows(path)
    assert [row["step"] for row in rows if row["loss"] is None] == [1, 4, 5, 9]
    assert [row["step"] for row in rows if row["nll_base"] is None] == [1, 4, 5, 9]
    assert [row["skipped_in_a_row"] for row in rows] == [1, 0, 0, 1, 2, 0, 0, 0, 1, 0]
    skipped = [1, 1, 1, 2, 3, 3, 3, 3, 4, 4]
    assert [row["skipped_steps"] for row in rows] == skipped
    # Rates are those that were applied: a skipped step does not advance the schedule.
    rate = optimizer.schedule(config.optimizer, config.stage_0.learning_rate, 10)
    applied = [float(rate(max(step - count, 0))) for step, count in enumerate(skipped)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(applied)
    assert len(set(applied)) > 3

    def refuse(constant):
        raise AssertionError(constant)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [note.split(" steps skipped")[0].split(": ")[-1] for note in notes] == [
        *("1 of 1", "2 of 4", "4 of 9", "4 of 10")
    ]
    # Stopped in between and resumed, all is the same to the bit.
    with pytest.raises(Interrupted):
        train_stage(tmp_path / "V", config, 0, SignalAt(BEFORE + 5))
    assert checkpoint(tmp_path / "V", config, 0)[0] == 5
    train_stage(tmp_path / "V", config, 0)
    assert_same_stage(tmp_path / "V", tmp_path / "W", config, 0)


def test_a_stage_that_gave_up_goes_on_with_more_patience(tmp_path, monkeypatch):
    config = clock_config({"stage_0.steps": 8, "max_bad_steps": 2, "checkpoint_every": 2})
    bad_at(monkeypatch, tmp_path / "W", config, [5, 6])
    for _ in range(2):
        with pytest.raises(UserError, match="2 steps in a row up to step 6 .* is of step 4, and"):
            train_stage(tmp_path / "W", config, 0)
    patient = clock_config({"stage_0.steps": 8, "max_bad_steps": 3, "checkpoint_every": 2})
    train_stage(tmp_path / "W", patient, 0)
    assert [row["step"] for row in read_rows(tmp_path / "W/stage_0/metrics.jsonl")] == [
        *range(1, 9)
    ]


# Other runs, and folders that are not where they were --------------------


def test_a_stage_that_another_run_trains_is_refused(begun, whole, config):
    root = begun(1)
    folder = root / "stage_1"
    with locks.held(folder):
        with pytest.raises(UserError, match=f"{folder} is in use by process .*; wait until it"):
            train_stage(root, config, 1)
        assert sorted(p.name for p in folder.iterdir()) == [".lock"]
        train_stage(root, config, 0)  # which is done: nothing is written
    train_stage(root, config, 1)
    assert_same_stage(root, whole, config, 1)


def test_teacher_scores_that_another_run_computes(begun, config):
    root = begun(3)
    with locks.held(root / "stage_3" / "teacher"):
        with pytest.raises(UserError, match="stage_3/teacher is in use by process"):
            train_stage(root, config, 3)


class MovedAt(SignalAt):
    """The working directory gets another name when a signal is looked for the n-th time."""

    def __init__(self, look, root):
        super().__init__(look)
        self._root = root

    @property
    def signum(self):
        self._looks_left -= 1
        if self._looks_left == 0:
            self._root.rename(self._root.with_name("moved"))
        return None

    @signum.setter
    def signum(self, value):
        assert value is None


@pytest.mark.parametrize("look", [3, 5])
def test_a_working_directory_that_is_moved_is_not_done(begun, whole, config, look):
    root = begun(1)
    with pytest.raises(UserError, match=f"{root}/stage_1 was moved or removed while it was in use"):
        train_stage(root, config, 1, MovedAt(BEFORE + look, root))
    shutil.rmtree(root, ignore_errors=True)  # a save that was under way may have made it anew
    root.with_name("moved").rename(root)
    train_stage(root, config, 1)
    assert_same_stage(root, whole, config, 1)


# Damaged files --------------------


def test_a_resume_after_a_power_cut(begun, whole, config, capfd):
    root = begun(1)
    with pytest.raises(Interrupted):
        train_stage(root, config, 1, SignalAt(BEFORE + 4))
    with (root / "stage_1" / "metrics.jsonl").open("ab") as file:
        file.write(bytes(4096))
    (root / "stage_1" / "checkpoints" / "999999").mkdir()
    (root / "stage_1" / "checkpoints" / "7.orbax-checkpoint-tmp-12").mkdir()
    train_stage(root, config, 1)
    assert_same_stage(root, whole, config, 1)
    assert "note: 1 of 7 lines of " in capfd.readouterr().err


@pytest.mark.parametrize("harm", ["other bytes", "a folder's name", "an archive", "huge"])
def test_damaged_teacher_scores_are_made_again(tmp_path, whole, begun, config, harm):
    root = begun(3)
    train_stage(root, config, 3)
    shutil.rmtree(root / "stage_3" / "checkpoints")
    folder = root / "stage_3" / "teacher"
    (piece,) = folder.glob("*.npy")
    before = np.load(piece)
    if harm == "other bytes":
        (folder / "identity").write_bytes(b"\xff\xfe")
        piece.write_bytes(b"\0" * 100)
    elif harm == "a folder's name":
        (folder / "identity").write_text("")
        piece.write_bytes(piece.read_bytes()[:-1])
    elif harm == "an archive":
        with piece.open("wb") as file:
            np.savez(file, a=np.zeros(1))
    else:
        data = piece.read_bytes()
        assert b"'shape': (12,)" in data
        piece.write_bytes(data.replace(b"'shape': (12,)         ", b"'shape': (12000000000,)"))
    train_stage(root, config, 3)
    np.testing.assert_array_equal(np.load(piece), before)
    assert_same_stage(root, whole, config, 3)


def test_bad_steps_in_a_row_end_the_stage(tmp_path, config, monkeypatch):
    def no_number(params, batch, key):
        loss, metrics = plain.next_token_loss(params, batch, key, model)
        return loss * math.nan, metrics

    model, _ = source.prepare(tmp_path / "W", config)
    monkeypatch.setattr(objective, "loss_function", lambda *_, **__: no_number)
    with pytest.raises(UserError, match="3 steps in a row up to step 3 had NaN or inf") as refused:
        train_stage(tmp_path / "W", config, 0)
    assert "lower the learning rate" in str(refused.value) and "\n" not in str(refused.value)
    rows = read_rows(tmp_path / "W/stage_0/metrics.jsonl")
    assert [row["skipped_in_a_row"] for row in rows][:3] == [1, 2, 3]
    assert rows[0]["loss"] is None


def test_rows_are_thinned_the_same_way_after_an_interruption(tmp_path, config):
    config = clock_config({"stage_0.steps": 10, "log_every": 4})
    with pytest.raises(Interrupted):
        train_stage(tmp_path / "W", config, 0, SignalAt(BEFORE + 6))
    train_stage(tmp_path / "W", config, 0)
    rows = read_rows(tmp_path / "W/stage_0/metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 10]


def test_metrics_are_read_while_the_next_step_runs():
    seen = []
    with loop.OneBehind(lambda step, values: seen.append((step, values["loss"]))) as behind:
        behind.add(1, {"loss": 0.5})
        assert seen == []
        behind.add(2, {"loss": 0.25})
        assert seen == [(1, 0.5)]
        behind.drain()  # nothing is read twice
    assert seen == [(1, 0.5), (2, 0.25)]


@pytest.mark.usefixtures("steps_made_once")
def test_a_stage_may_have_another_type_of_parameters_than_its_start(tmp_path):
    """All of its parameters are of the new type, also those of the stage that it starts from."""
    config = clock_config()
    save_stage(tmp_path, config, 0)
    config.compute.param_dtype = "bfloat16"
    run = run_of(tmp_path, config)
    recipe = stage_of(run, 1)
    with jax.set_mesh(run.mesh):
        program = step_lib.program(recipe, run.mesh, corpus.extra_keys(recipe.data))
        state = start.starting_state(run, recipe, program)
    types = jax.tree.map(lambda leaf: leaf.dtype, (state.params, program.state.params))
    assert types[0] == types[1]
    assert state.params["lm"]["embed"]["embedding"].dtype == jnp.bfloat16


def test_scores_by_rank_are_not_read_as_scores_by_id(tmp_path):
    """Of a vocabulary's size they have the shape and the type of the others."""
    by_id = np.dtype([("teacher_log_probs", np.float32, (3, 8))])
    by_rank = np.dtype([*by_id.descr, ("teacher_ids", np.int32, (3, 8))])
    for kind, readers in ((by_id, (by_id,)), (by_rank, (by_rank,))):
        np.save(tmp_path / "piece.npy", np.zeros(2, kind))
        for wanted in (by_id, by_rank):
            found = teacher_scores._read_piece(tmp_path / "piece.npy", 2, wanted)
            assert (found is not None) == (wanted in readers)
