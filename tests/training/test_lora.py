"""Stages with adapters: what they save, continue, resume and refuse, and the model that doors load."""

from __future__ import annotations

import gc
import json
import re
import shutil
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fqs_jax import huggingface
from fqs_jax.curriculum import objective, resolve
from fqs_jax.model import decoder, lora
from fqs_jax.runs import damage, folders, loading, source, stages
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupted
from fqs_jax.training import optimizer, start
from fqs_jax.training import step as step_lib
from tests.tiny_runs import clock_config, rows_without_time, save_stage
from tests.training.test_loop import BEFORE, SignalAt, assert_same, run_of, stage_of, train_stage

pytestmark = pytest.mark.usefixtures("steps_made_once")
TOKENS = jnp.arange(12).reshape(2, 6)


def lora_config(**changes: Any) -> Any:
    """Stage 0 is trained in full, the others beside it: thinking (1, 2), and NTP with teacher 2."""
    fields: dict[str, Any] = {
        "lora.rank": 2,
        "lora.alpha": 3.0,
        "checkpoint_every": 2,
        "stage_0.steps": 2,
    }
    fields["stage_0.settings"] = ("lora.rank=0",)
    return clock_config(fields | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def config() -> Any:
    return lora_config()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, config: Any, steps_made_once: None) -> Path:
    """All stages trained without an interruption."""
    root = tmp_path_factory.mktemp("lora") / "W"
    for number in range(4):
        train_stage(root, config, number)
    return root


@pytest.fixture
def copy(tmp_path: Path, whole: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "W")


def saved(root: Path, number: int) -> Any:
    """The record of everything in a stage's newest checkpoint, and its progress."""
    folder = folders.checkpoint_folder(root, number)
    path = folder / str(folders.latest_step(folder)) / "progress" / "metadata"
    return json.loads(path.read_text())


def test_checkpoints_hold_adapters_and_thoughts_alone(whole: Path) -> None:
    """Nothing of the decoder, and moments of nothing else; the base's fingerprint is beside them."""
    adapters = {
        f"lm/layers/{name}/{part}" for name in lora.TARGETS for part in ("lora_a", "lora_b")
    }
    head = {f"{x}/{y}" for x in ("hidden_1", "hidden_2") for y in ("kernel", "bias")} | {
        "out/kernel"
    }
    thoughts = {"thought/start", "thought/end"} | {f"thought/talk_head/{name}" for name in head}
    base = damage.digest(stages.load_stage(whole, 0)[0]["lm"])
    for number, expected in {1: adapters | thoughts, 2: adapters | thoughts, 3: adapters}.items():
        record = saved(whole, number)
        assert set(record["arrays"]["params"]) == expected
        moments = [path for path in record["arrays"]["optimizer"] if "/mu/" in path]
        assert {path.split("/mu/")[1] for path in moments} == expected
        assert record["progress"] == {"steps": 6, "base": base}
    full = saved(whole, 0)
    assert "lm/embed/embedding" in full["arrays"]["params"]
    assert full["progress"] == {"steps": 2}
    first = json.loads((whole / "stage_1/metrics.jsonl").read_text().splitlines()[0])
    sizes = [np.prod(leaf["shape"]) for leaf in saved(whole, 1)["arrays"]["params"].values()]
    assert first["trained_parameters"] == sum(sizes) < first["parameters"]


def test_adapters_and_thoughts_are_trained_and_the_base_is_not(whole: Path) -> None:
    for number in (1, 3):
        trained = stages.load_trained(whole, number)
        adapters = trained.params["lm"]["layers"]
        assert all(np.any(part["lora_b"]) for part in adapters.values())
        rows = rows_without_time(whole / f"stage_{number}" / "metrics.jsonl")[1:-1]
        assert all(np.isfinite(row["loss"]) and row["grad_norm/lm"] >= 0 for row in rows)
    marks = stages.load_trained(whole, 1).params["thought"]
    assert np.any(marks["talk_head"]["out"]["kernel"])


def test_every_door_loads_the_merged_model(whole: Path) -> None:
    """W + alpha / rank A B by hand, through `loading.load`, which all programs call."""
    base = stages.load_stage(whole, 0)[0]["lm"]
    for number in (1, 2, 3):
        trained = stages.load_trained(whole, number)
        loaded = loading.load(str(whole), str(number))
        chex.assert_trees_all_equal_structs(loaded.params["lm"], base)
        for name, adapter in trained.params["lm"]["layers"].items():
            down, up = (np.asarray(adapter[part])[0] for part in ("lora_a", "lora_b"))
            kernel = np.asarray(base["layers"][name]["kernel"])[0]
            change = 3.0 / 2 * down.reshape(-1, 2) @ up.reshape(2, -1)
            found = np.asarray(loaded.params["lm"]["layers"][name]["kernel"])[0]
            np.testing.assert_allclose(found, kernel + change.reshape(kernel.shape), atol=1e-6)
        assert_same(loaded.params["lm"]["embed"], base["embed"])
    names = [name for _, name, _, _ in loading.models(whole)]
    assert names == ["base", "think-5-2", "think-4-1", "ntp"]


@pytest.mark.parametrize("number", [1, 3])
def test_an_interrupted_stage_ends_like_an_uninterrupted_one(
    copy: Path, whole: Path, config: Any, number: int
) -> None:
    shutil.rmtree(copy / f"stage_{number}")
    with pytest.raises(Interrupted, match="saved at step 3 of 6"):
        train_stage(copy, config, number, SignalAt(BEFORE + 3))
    train_stage(copy, config, number)
    assert saved(copy, number) == saved(whole, number)  # fingerprints of all arrays
    rows = [rows_without_time(root / f"stage_{number}/metrics.jsonl") for root in (copy, whole)]
    assert [row for row in rows[0] if "event" not in row] == rows[1][1:-1]


def starting(root: Path, config: Any, number: int) -> tuple[Any, Any]:
    """What a stage begins with, and its base."""
    run = run_of(root, config)
    recipe = stage_of(run, number)
    program = step_lib.program(recipe, run.mesh)
    base = start.frozen_base(run, recipe)
    return start.starting_state(run, recipe, program, base), base


def test_a_stage_continues_the_adapters_before_it(whole: Path, config: Any) -> None:
    state, base = starting(whole, config, 2)
    before = stages.load_trained(whole, 1).params
    assert_same(state.params["lm"], before["lm"])
    assert base is not None and base.name == "stage 0 (base)"
    assert_same(base.params["lm"], stages.load_stage(whole, 0)[0]["lm"])


@pytest.mark.parametrize("alpha", [3.0, 4.0])
def test_other_adapters_begin_anew_beside_the_merged_ones(whole: Path, alpha: float) -> None:
    rank = 2 + (alpha == 3.0)
    config = lora_config(stage_2__settings=(f"lora.rank={rank}", f"lora.alpha={alpha}"))
    state, base = starting(whole, config, 2)
    assert base is not None and base.name == "stage 1 (think-5-2)"
    assert_same(base.params["lm"], stages.load_stage(whole, 1)[0]["lm"])
    adapters = state.params["lm"]["layers"]
    assert all(not np.any(part["lora_b"]) for part in adapters.values())
    assert adapters["q"]["lora_a"].shape == (1, 16, rank)
    model = source.read_model(folders.source_folder(whole), config)
    tokenizer = run_of(whole, config).tokenizer
    fresh = source.fresh_marks(config, model, base.params["lm"], tokenizer)
    assert_same(state.params["thought"]["start"], fresh["start"])
    before = stages.load_trained(whole, 1).params["thought"]["talk_head"]
    assert_same(state.params["thought"]["talk_head"]["hidden_1"], before["hidden_1"])


def test_a_stage_in_full_starts_from_the_merged_model(whole: Path) -> None:
    config = lora_config(stage_2__settings=("lora.rank=0",))
    state, base = starting(whole, config, 2)
    assert base is None
    assert_same(state.params["lm"], stages.load_stage(whole, 1)[0]["lm"])


def test_another_base_is_refused(copy: Path, config: Any, tmp_path: Path) -> None:
    """By every door, and by the stage itself when it resumes; the record of the base shows nothing."""
    shutil.rmtree(copy / "stage_0/checkpoints")
    save_stage(tmp_path / "other", config, 0, seed=1)
    shutil.copytree(tmp_path / "other/stage_0/checkpoints", copy / "stage_0/checkpoints")
    shutil.rmtree(copy / "stage_1/checkpoints/6")
    refusal = (
        r"adapters of stage \d \(.*\) in .* beside other weights: stage 0 \(base\) has changed"
    )
    for use in (
        lambda: loading.load(str(copy), "2"),
        lambda: stages.load_adapters(copy, "ntp"),
        lambda: train_stage(copy, config, 1),
    ):
        with pytest.raises(UserError, match=refusal) as refused:
            use()
        assert "\n" not in str(refused.value)
        assert "put it back, or remove" in str(refused.value)
    assert folders.latest_step(copy / "stage_1/checkpoints") == 4


def test_a_missing_base_names_its_command(copy: Path, config: Any) -> None:
    shutil.rmtree(copy / "stage_2")
    shutil.rmtree(copy / "stage_0/checkpoints")
    with pytest.raises(UserError, match="no checkpoint of stage 0; make it with: launch --stage=0"):
        train_stage(copy, config, 2)
    assert not (copy / "stage_2").exists()


def test_the_teacher_has_left_the_device_before_the_student_comes(
    copy: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher and student share a base, of which no second copy exists beside the student."""
    shutil.rmtree(copy / "stage_3")
    found: list[int] = []

    def tables() -> int:
        gc.collect()
        return sum(x.shape == (17, 16) for x in jax.live_arrays())  # V, D: embedding tables alone

    def count(*arguments: Any) -> Any:
        found.append(tables())
        base = frozen_base(*arguments)
        found.append(tables())
        return base

    frozen_base = start.frozen_base
    before = tables()
    monkeypatch.setattr("fqs_jax.training.loop.frozen_base", count)
    train_stage(copy, config, 3)
    assert found == [before, before + 1]


def test_adapters_are_recorded_only_where_there_are_any(whole: Path) -> None:
    """Records of stages in full stay as they were before there were adapters."""
    for number in range(4):
        run = json.loads((whole / f"stage_{number}/run.json").read_text())
        assert ("lora" in run["config"]) == (number > 0)


def test_peft_reads_exported_adapters(whole: Path, tmp_path: Path) -> None:
    """peft's own forward pass over the exported base equals the merged model's."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    trained, base = stages.load_adapters(whole, "2", sharding.host_memory())
    assert trained.lora is not None
    merged = loading.load(str(whole), "2")
    huggingface.export(base.params["lm"], merged.model, tmp_path / "base", merged.source)
    settings = {"n_ahead": 4}
    huggingface.export_adapters(
        trained.params["lm"],
        trained.lora,
        tmp_path / "adapter",
        base.name,
        thought=trained.params["thought"],
        thought_settings=settings,
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert theirs.peft_config["default"].r == 2
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(TOKENS))).logits.numpy()
        plain = theirs.get_base_model()
        with theirs.disable_adapter():
            without = plain(torch.tensor(np.asarray(TOKENS))).logits.numpy()
    ours = decoder.logits(merged.params["lm"], TOKENS, merged.model)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.abs(ours - without).max() > 1e-3
    assert huggingface.load_thought_settings(tmp_path / "adapter", 17) == settings | {
        "masked_ids": ()
    }
    assert (tmp_path / "adapter/thought.safetensors").stat().st_size > 4 * 2 * 16 * 16


def test_a_stage_in_full_has_no_adapters_to_export(whole: Path) -> None:
    with pytest.raises(UserError, match=r"stage 0 \(base\) in .* has no adapters"):
        stages.load_adapters(whole, "0")


def test_adapters_beside_random_parameters_are_refused(config: Any) -> None:
    model = source.described_model(config, vocab_size=17)
    recipes = resolve.recipes(lora_config(stage_0__settings=()), model)
    with pytest.raises(UserError, match="stage_0 would freeze random parameters: give --init_from"):
        start.check_base(recipes[0], config)
    for recipe in recipes[1:]:
        start.check_base(recipe, config)


def test_without_adapters_the_step_is_the_one_that_knows_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program of rank 0, of a config without the section, and of code without adapters."""

    def text(config: Any) -> str:
        recipe = stage_recipe(config)
        transform = optimizer.make(recipe.optimizer, 0.1, 6)
        step = step_lib.make_step(objective.loss_function(recipe), transform, jax.random.key(0))
        params = objective.abstract_params(recipe.model, recipe.thought, recipe.lora)
        state = step_lib.State(params, jax.eval_shape(transform.init, params))
        batch = {"tokens": TOKENS, "mask": TOKENS >= 0}
        return re.sub(" at 0x[0-9a-f]+", "", str(jax.make_jaxpr(step)(state, batch, 0)))

    def stage_recipe(config: Any) -> Any:
        model = source.described_model(config, vocab_size=17, position_chunk=4)
        return resolve.find(resolve.recipes(config, model), "1")

    off = text(lora_config(lora__rank=0, stage_0__settings=()))
    absent = clock_config({})
    del absent["lora"]
    assert text(absent) == off
    monkeypatch.setattr(decoder, "Dense", nn.DenseGeneral)
    monkeypatch.setattr(lora, "split", lambda params: (params, {}))
    monkeypatch.setattr(lora, "joined", lambda trained, *_: trained)
    assert text(absent) == off
