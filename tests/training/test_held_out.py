"""The loss on held-out text while a stage trains, and the checkpoint that it keeps."""

import dataclasses
import re
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from fqs_jax.curriculum import resolve
from fqs_jax.data import corpus
from fqs_jax.model import decoder
from fqs_jax.objectives import quiet_star
from fqs_jax.reporting import collect
from fqs_jax.runs import folders, loading, stages
from fqs_jax.runs.metrics_file import read_events, read_rows
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking.config import Thinker
from fqs_jax.training import held_out, step
from tests.tiny_runs import clock_config, rows_without_time
from tests.training.test_loop import BEFORE, SignalAt, assert_same, run_of, stage_of, train_stage

pytestmark = pytest.mark.usefixtures("steps_made_once")
# 5 rows in batches of 2 are 3 batches, whose rows have different numbers of targets.
MEASURED = {"held_out.every": 4, "held_out.rows": 5, "checkpoint_every": 3, "keep_checkpoints": 1}
NAN = float("nan")
STAGES = {"stage_1.n_ahead": 4, "stage_1.n_ahead_talk": 1, "stage_3.teacher": 1}


def config_of(**changes):
    return clock_config(MEASURED | STAGES | changes)


def measured(root, number):
    return read_events(folders.stage_folder(root, number) / "metrics.jsonl", "held_out")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, steps_made_once):
    root = tmp_path_factory.mktemp("measured") / "W"
    for number in (0, 1, 3):
        train_stage(root, config_of(), number)
    return root


def held_out_batches(root, number):
    """The batches that a stage is measured on, from the documents of the validation problems."""
    run = run_of(root, config_of())
    recipe = stage_of(run, number)
    data = corpus.held_out(recipe.data, "", 5, run.tokenizer, 2, recipe.seed)
    assert data.epoch_size == 5
    return run, recipe, [data.batch(i) for i in range(3)]


def base_losses(params, model, batch):
    """Loss and number of every target of a batch, by a float64 softmax of all logits."""
    hidden, _ = decoder.text_forward(params["lm"], batch["tokens"], model, batch["mask"])
    logits = np.asarray(hidden @ decoder.head_kernel(params["lm"]), np.float64)[:, :-1]
    logits -= logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, batch["tokens"][:, 1:, None], -1)[..., 0]
    return -picked[batch["mask"][:, 1:]]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_number_is_the_loss_of_the_saved_parameters(trained, number):
    rows = measured(trained, number)
    assert [row["step"] for row in rows] == [4, 6]
    _, recipe, batches = held_out_batches(trained, number)
    params, _ = stages.load_stage(trained, number)
    each = [base_losses(params, recipe.model, batch) for batch in batches]
    assert len({len(losses) for losses in each}) > 1
    assert rows[-1]["nll_base"] == pytest.approx(np.concatenate(each).mean(), rel=1e-5)
    assert ("nll_mixed" in rows[-1]) == (number == 1)
    if number != 1:
        return
    key = jax.random.fold_in(step.stage_key(recipe), np.uint32(2**32 - 3))
    thinker = Thinker(recipe.model, recipe.thought)
    loss = jax.jit(partial(quiet_star.quiet_star_loss, thinker=thinker, config=recipe.objective))
    mixed = []
    for i, batch in enumerate(batches):
        _, found = loss(params, batch | {"row": np.arange(2) + 2 * i}, key)
        mixed.append(float(found["nll_mixed"].value))
    weights = [len(losses) for losses in each]  # one talk step
    assert rows[-1]["nll_mixed"] == pytest.approx(np.average(mixed, weights=weights), rel=1e-5)


def test_a_report_shows_the_thoughts_of_the_best_step(trained):
    settings = collect.Settings(documents=("1+2:3.",), stage="1@best", samples=1)
    reading = collect.read_thoughts(trained, settings)
    assert re.fullmatch(r"stage 1 \(think-5-2\), best step [46]", reading.stage)
    with pytest.raises(UserError, match=r"there is no stage '7'; there are 0 \(base\)"):
        collect.read_thoughts(trained, dataclasses.replace(settings, stage="7@best"))


def test_it_reads_no_problem_that_is_trained_on(trained):
    run, recipe, batches = held_out_batches(trained, 0)
    task = corpus.built_in_task(recipe.data, recipe.seed)
    known = {prompt for prompt, _ in task.problems("validation")}
    texts = [
        run.tokenizer.decode(row[mask])
        for b in batches
        for row, mask in zip(b["tokens"], b["mask"], strict=True)
    ]
    assert all(any(prompt in text for prompt in known) for text in texts)


def test_rows_do_not_depend_on_measuring_and_a_killed_run_has_the_same(trained, tmp_path):
    """All rows, those of held-out text among them, and the bytes of the parameters."""
    root = tmp_path / "W"
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("stage_[123]"))
    with pytest.raises(RuntimeError, match="killed"):
        train_stage(root, config_of(), 1, SignalAt(BEFORE + 5, crash=True))
    assert [row["step"] for row in measured(root, 1)] == [4]
    train_stage(root, config_of(), 1)
    files = [r / "stage_1" / "metrics.jsonl" for r in (trained, root)]
    whole, resumed = (
        [row for row in rows_without_time(path) if row.get("event") != "start"] for path in files
    )
    assert whole == resumed
    off = tmp_path / "off"
    shutil.copytree(root, off, ignore=shutil.ignore_patterns("stage_[123]"))
    train_stage(off, config_of(**{"held_out.every": 0}), 1)
    assert not measured(off, 1)

    def without_times(path):
        return [{**row, "time": None} for row in read_rows(path)]

    assert without_times(off / "stage_1/metrics.jsonl") == without_times(files[0])
    params = [stages.load_stage(r, 1)[0] for r in (trained, root, off)]
    for other in params[1:]:
        assert_same(params[0], other)


@pytest.mark.parametrize(
    "losses, best, saved", [((3.0, 1.0, 2.0), 4, {4, 6}), ((1.0, NAN, NAN, 1.0), 2, {2, 6})]
)
def test_the_best_step_is_kept_and_loads(trained, tmp_path, monkeypatch, losses, best, saved):
    config = config_of(**{"held_out.every": 2})
    given = iter(losses)
    monkeypatch.setattr(held_out.Measure, "losses", lambda *_: {"nll_base": next(given)})
    root = tmp_path / "W"
    with pytest.raises(RuntimeError, match="killed"):
        train_stage(root, config, 0, SignalAt(BEFORE + 5, crash=True))
    train_stage(root, config, 0)  # from step 4, or from 3, which measures 4 again
    assert set(folders.saved_steps(root / "stage_0" / "checkpoints")) == saved
    loaded = loading.load(str(root), "base@best")
    assert loaded.label == f"stage 0 (base), best step {best}"
    at, _ = stages.load_stage(root, 0, at=best)
    last, _ = stages.load_stage(root, 0)
    assert_same(loaded.params, at)
    with pytest.raises(AssertionError):
        assert_same(at, last)


def test_one_line_says_what_is_wrong(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "W", ignore=shutil.ignore_patterns("metrics.jsonl"))
    with pytest.raises(
        UserError, match=r"no best step: no saved one .* leave @best out, or train with"
    ):
        loading.load(str(tmp_path / "W"), "0@best")
    model = run_of(trained, config_of()), None
    for changes, message in (
        ({"held_out.text": "a.txt"}, "data.source is 'clock', whose validation problems"),
        ({"data.source": "text", "data.text": "a.txt"}, "give --config.held_out.text=FILE"),
        (
            {"data.source": "text", "data.text": "a", "held_out.text": "a"},
            "the text that is trained",
        ),
        ({"held_out.rows": 0}, "held_out.rows is 0; set at least 1"),
    ):
        config = config_of(**changes)
        with pytest.raises(UserError, match=message):
            resolve.recipes(config, stage_of(model[0], 0).model)
