"""Working directories: what is kept, what may change, what can be loaded."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from fqs_jax import huggingface
from fqs_jax.curriculum import resolve
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.reporting import inventory
from fqs_jax.runs import folders, loading, record, source, stages
from fqs_jax.runtime.errors import UserError
from fqs_jax.thinking import config as config_lib
from tests.tiny_runs import clock_config, hf_folder, save_stage


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def hf_config(folder, changes=None):
    return clock_config({"init_from": str(folder), "thought.start_text": "a"} | (changes or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("hf") / "model", "qwen2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished base, a finished and an unfinished thinking stage, and their parameters."""
    root, config = tmp_path_factory.mktemp("run") / "W", clock_config()
    saved = {0: save_stage(root, config, 0), 1: save_stage(root, config, 1, seed=1)}
    saved[2] = save_stage(root, config, 2, seed=2, step=3)
    return root, config, saved


# Where a run begins --------------------


def test_from_scratch(tmp_path):
    config = clock_config()
    model, tokenizer = source.prepare(tmp_path / "W", config)
    assert (model.width, model.num_layers, model.vocab_size) == (16, 1, tokenizer.vocab_size)
    assert (model.dtype, model.remat) == (config.compute.dtype, config.compute.remat)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "W" / "source").iterdir())
    assert source.prepare(tmp_path / "W", config)[0] == model
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "W/source").iterdir())

    params = source.initial_params(tmp_path / "W", config, model)
    assert_same(params, source.initial_params(tmp_path / "W", config, model))
    config.seed = 1
    other = source.initial_params(tmp_path / "W", config, model)
    assert (params["lm"]["embed"]["embedding"] != other["lm"]["embed"]["embedding"]).any()


def test_from_a_folder(tmp_path, folder):
    config = hf_config(folder)
    model, tokenizer = source.prepare(tmp_path / "W", config)
    assert model.qkv_bias and tokenizer.vocab_size == model.vocab_size == 300
    names = {p.name for p in (tmp_path / "W" / "source").iterdir()}
    kept = {"config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
    assert names == kept | {"origin.json"}  # and no weights
    for name in kept:
        assert (tmp_path / "W/source" / name).read_bytes() == (folder / name).read_bytes()
    params = source.initial_params(tmp_path / "W", config, model)
    assert_same(params["lm"], huggingface.load_params(folder, model))


def test_a_refused_start_leaves_nothing(tmp_path, folder):
    with pytest.raises(UserError, match="is not a folder"):
        source.prepare(tmp_path / "W", hf_config(tmp_path / "none"))
    with pytest.raises(UserError, match="config.model describes no model .*--init_from=HF_DIR"):
        source.prepare(tmp_path / "W", clock_config({"model": {"width": 4}}))
    assert not list(tmp_path.glob("W/*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="/file is a file, not a folder"):
        source.prepare(tmp_path / "file", clock_config())


def test_a_broken_initial_model_leaves_nothing(tmp_path, folder):
    def start(change):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "model")
        change(tmp_path / "model")
        source.prepare(tmp_path / "W", hf_config(tmp_path / "model"))

    (tmp_path / "secret").write_text("SECRET")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())

    def link_config(model):
        (model / "config.json").unlink()
        (model / "config.json").symlink_to(tmp_path / "config.json")

    for change, message in (
        (
            lambda m: (m / "LICENSE").symlink_to(tmp_path / "secret"),
            "LICENSE is a link to a file out",
        ),
        (link_config, "config.json is a link to a file outside"),
        (lambda m: (m / "adapter_config.json").write_text("{}"), "adapter.*merge_and_unload"),
        (lambda m: (m / "model.safetensors").write_text("x"), "damaged or incomplete"),
        (lambda m: (m / "model.safetensors").unlink(), "has neither model.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            start(change)
        assert not list(tmp_path.glob("W/*"))
    start(lambda m: None)
    (tmp_path / "W/source/origin.json").write_text("{}")
    with pytest.raises(UserError, match="origin.json does not name the initial model"):
        source.origin_name(tmp_path / "W")


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"model.width": 32}, "model.width=16, now it is 32"),
        ({"seed": 3}, "seed=0, now it is 3"),
        ({"data.clock.modulus": 5}, "data.clock.modulus=7, now it is 5"),
        ({"init_from": "FOLDER"}, "init_from='', now it is '.*model'"),
    ],
)
def test_another_initial_model_needs_another_place(run, tmp_path, folder, changes, field):
    root = tmp_path / "W"
    shutil.copytree(run[0], root)
    changes = {name: str(folder) if v == "FOLDER" else v for name, v in changes.items()}
    config = clock_config(changes)
    with pytest.raises(UserError, match=field) as refused:
        source.prepare(root, config)
    assert "another --workdir" in str(refused.value) and "\n" not in str(refused.value)

    for number in range(3):  # with nothing made from it, the old one is just replaced
        shutil.rmtree(root / f"stage_{number}")
    source.prepare(root, config)
    source.prepare(root, config)


def test_a_relative_path_to_the_same_folder_is_the_same(tmp_path, folder, monkeypatch):
    save_stage(tmp_path / "W", hf_config(folder), 0)
    monkeypatch.chdir(folder.parent)
    source.prepare(tmp_path / "W", hf_config("./model"))


# What may change between two starts of a stage --------------------


def stage_of(root, config, number):
    model, _ = source.prepare(root, config)
    return resolve.find(resolve.recipes(config, model), str(number)).stage


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"batch_size": 4}, "config.batch_size=2, now it is 4"),
        ({"optimizer.lr_scale.lm": 0.5}, "config.optimizer.lr_scale.lm=1.0, now it is 0.5"),
        ({"stage_1.n_ahead": 6}, "stage.n_ahead=5, now it is 6"),
        ({"stage_1.learning_rate": 1e-3}, "stage.learning_rate=0.01, now it is 0.001"),
        ({"thought.masked_ids": (3,)}, r"config.thought.masked_ids=\[\], now it is \[3\]"),
    ],
)
def test_a_change_that_matters_is_named(run, changes, field):
    root = run[0]
    before = (root / "stage_1" / "run.json").read_text()
    config = clock_config(changes)
    with pytest.raises(UserError, match=field) as refused:
        record.write(root, config, stage_of(root, config, 1))
    assert str(root / "stage_1") in str(refused.value) and "\n" not in str(refused.value)
    assert (root / "stage_1" / "run.json").read_text() == before


def test_harmless_changes_and_other_rows(run, tmp_path):
    root = tmp_path / "W"
    shutil.copytree(run[0], root)
    shutil.rmtree(root / "stage_2")  # which was made from stage 1 as it is
    harmless = {"stage_1.steps": 9, "log_every": 3, "checkpoint_every": 7, "max_bad_steps": 2}
    harmless |= {"mesh.fsdp": 2, "microbatches": 2, "compute.remat": "full", "data.workers": 1}
    others = {"stage_2.learning_rate": 1.0, "distill.form": "hinge"}  # this stage is no student
    harmless["stage_1.settings"] = ("held_out.every=2", "held_out.rows=8")
    config = clock_config(harmless | others)
    record.write(root, config, stage_of(root, config, 1))
    stage, kept = folders.read_run(root, 1)
    assert stage == stage_of(root, config, 1) and stage.steps == 9
    assert kept.log_every == 3 and "stage_2" not in kept
    # A stage without a checkpoint is begun again as the config says now.
    shutil.rmtree(root / "stage_1" / "checkpoints")
    config.batch_size = 4
    record.write(root, config, stage_of(root, config, 1))
    assert folders.read_run(root, 1)[1].batch_size == 4


# What can be loaded --------------------


def test_load_stage(run):
    root, _, saved = run
    params, stage = stages.load_stage(root, 1)
    assert_same(params, saved[1])
    assert stage.name == "think-5-2"
    assert_same(stages.load_stage(root, 2, finished=False)[0], saved[2])
    with pytest.raises(UserError, match="stage 2 .* is at step 3 of 6; finish it with: make 2"):
        stages.load_stage(root, 2, "make 2")
    with pytest.raises(UserError, match="has no checkpoint of stage 3; make it with: make 3"):
        stages.load_stage(root, 3, "make 3")


def test_load_of_stages(run):
    root, config, saved = run
    base = loading.load(str(root), "0")
    assert base.thought is None and base.label == "stage 0 (base)"
    assert_same(base.params, saved[0])
    thinking = loading.load(str(root), "think-5-2", dtype="bfloat16")
    assert_same(thinking.params, saved[1])
    assert thinking.thought == config_lib.ThoughtConfig(n_ahead=5, n_ahead_talk=1, rationales=1)
    assert (thinking.model.dtype, base.model.dtype) == ("bfloat16", "float32")
    assert loading.load(str(root), "2").label == "stage 2 (think-4-1)"  # unfinished as it is
    initial = loading.load(str(root), "init")
    assert_same(initial.params, source.initial_params(root, config, initial.model))
    assert [stage.number for stage in folders.existing_stages(root)] == [0, 1, 2]


@pytest.mark.parametrize(
    "stage, message",
    [
        (None, r"choose a model with --stage=N, of 0 \(base\), 1 \(think-5-2\), 2"),
        ("3", r"no stage '3'; there are 0 \(base\)"),
        ("nothing", "no stage 'nothing'"),
    ],
)
def test_load_of_what_is_not_there(run, stage, message):
    with pytest.raises(UserError, match=message):
        loading.load(str(run[0]), stage)


def test_load_of_no_run(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*none"):
        loading.load(str(tmp_path / "none"))
    source.prepare(tmp_path / "W", clock_config())
    for stage, message in ((None, "of none yet"), ("init", "has no stage yet"), ("1", "no stage")):
        with pytest.raises(UserError, match=message):
            loading.load(str(tmp_path / "W"), stage)


def test_load_of_a_folder(folder, tmp_path):
    loaded = loading.load(str(folder))
    assert loaded.thought is None and loaded.label == "model" and loaded.source == folder
    assert loaded.model.dtype == loaded.model.param_dtype == "float32"
    with pytest.raises(UserError, match="no working directory, so it has no stage 2"):
        loading.load(str(folder), "2")
    with pytest.raises(UserError, match="config.json"):
        loading.load(str(tmp_path))


def test_an_exported_thinking_stage_thinks(run, tmp_path):

    stage = loading.load(str(run[0]), "1")
    assert stage.thought is not None
    huggingface.export(
        stage.params["lm"],
        stage.model,
        tmp_path / "out",
        stage.source,
        thought=stage.params["thought"],
        thought_settings=dataclasses.asdict(
            dataclasses.replace(stage.thought, masked_ids=(4, 2), mixing="sigmoid")
        ),
    )
    exported = loading.load(str(tmp_path / "out"))
    assert_same(exported.params, stage.params)
    assert exported.thought == dataclasses.replace(
        stage.thought, masked_ids=(4, 2), mixing="sigmoid"
    )


def test_thoughts_that_do_not_fit_their_settings(run, tmp_path):
    stage = loading.load(str(run[0]), "1")
    for settings, message in (
        ({}, "its settings are unusable: key 'n_ahead' is missing"),
        ({"n_ahead": 3}, "its settings are unusable: n_ahead 3 leaves no sampled token"),
        ({"n_ahead": 5, "mixing": "x"}, "its settings are unusable: mixing 'x' is none of"),
        ({"n_ahead": 5, "tokens": "pause"}, r"tensor pause of shape \(16,\) is missing"),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        thought = stage.params["thought"]
        huggingface.export(
            stage.params["lm"],
            stage.model,
            out,
            stage.source,
            thought=thought,
            thought_settings=settings,
        )
        with pytest.raises(UserError, match=f"thought.safetensors: {message}"):
            loading.load(str(out))


def test_a_step_that_is_deleted_while_it_is_read_gives_way_to_the_newest(
    run, tmp_path, monkeypatch
):
    root = tmp_path / "W"
    shutil.copytree(run[0], root)
    checkpoints = folders.checkpoint_folder(root, 2)
    find = folders.saved_step

    def find_too_early(*args):
        monkeypatch.setattr(folders, "saved_step", find)
        step = find(*args)
        (checkpoints / "3").rename(checkpoints / "5")  # what a run does between two looks
        return step

    monkeypatch.setattr(folders, "saved_step", find_too_early)
    assert_same(stages.load_stage(root, 2, finished=False)[0], run[2][2])
    (checkpoints / "5" / "_CHECKPOINT_METADATA").unlink()
    for path in (checkpoints / "5").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot restore step 5 .*; train that stage again"):
        stages.load_stage(root, 2, finished=False)


# Marks --------------------


def test_marks_begin_as_vocabulary_entries(run, capsys):
    root, config, saved = run
    tokenizer = tokenizer_lib.load(root / "source")
    start, end = source.mark_ids(config, tokenizer)
    assert (tokenizer.decode([start]), tokenizer.decode([end])) == (":", "=")
    model = source.read_model(root / "source", config)
    marks = source.fresh_marks(config, model, saved[0]["lm"], tokenizer)
    table = saved[0]["lm"]["embed"]["embedding"]
    np.testing.assert_allclose(marks["start"] * 100, table[start], rtol=1e-6)
    np.testing.assert_allclose(marks["end"] * 100, table[end], rtol=1e-6)
    config = clock_config({"thought.end_text": "=:"})
    assert source.mark_ids(config, tokenizer) == (start, end)
    note = capsys.readouterr().err
    assert note.startswith("note: thought.end_text '=:' is 2 tokens") and note.count("\n") == 1
    config = clock_config({"thought.end_text": ""})
    with pytest.raises(UserError, match="thought.end_text '' has no token"):
        source.mark_ids(config, tokenizer)


def test_a_mark_beyond_the_table_is_refused(run):
    root, config, saved = run
    tokenizer = tokenizer_lib.load(root / "source")
    table = saved[0]["lm"]["embed"]["embedding"]
    with pytest.raises(UserError, match="a mark has token .*, and the model has 2 embeddings"):
        source.fresh_marks(
            config,
            source.read_model(root / "source", config),
            {"embed": {"embedding": table[:2]}},
            tokenizer,
        )


def test_the_published_evaluation_renews_the_marks(run, tmp_path):
    root = tmp_path / "W"
    config = clock_config({"thought.reset_marks_at_eval": True})
    saved = save_stage(root, config, 0), save_stage(root, config, 1, seed=1)
    loaded = loading.load(str(root), "1")
    fresh = source.fresh_marks(config, loaded.model, saved[1]["lm"], loaded.tokenizer)
    assert_same({k: loaded.params["thought"][k] for k in ("start", "end")}, fresh)
    assert_same(loaded.params["thought"]["talk_head"], saved[1]["thought"]["talk_head"])


def test_origin_says_where_the_weights_are(run, tmp_path, folder):
    assert json.loads((run[0] / "source/origin.json").read_text())["init_from"] == ""
    source.prepare(tmp_path / "W", hf_config(folder))
    origin = json.loads((tmp_path / "W/source/origin.json").read_text())
    assert origin == {"init_from": str(folder.resolve())}


# Ids without a row --------------------


def test_a_tokenizer_that_does_not_fit_the_model(folder, tmp_path):
    """Both doors refuse it before anything is made or read."""
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    raw = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**raw, "eos_token_id": [2, 128001]}))
    with pytest.raises(UserError, match="model: the end token has id 128001"):
        loading.load(str(broken))
    with pytest.raises(UserError, match="model: the end token has id 128001"):
        source.prepare(tmp_path / "W", clock_config({"init_from": str(broken)}))
    assert not (tmp_path / "W" / "source").exists()


# What is missing --------------------


@pytest.fixture
def broken(run, tmp_path):
    """A copy of the run, to take parts of it away."""
    return shutil.copytree(run[0], tmp_path / "W")


def test_a_working_directory_without_its_source(broken):
    shutil.rmtree(broken / "source")
    with pytest.raises(UserError, match="W/source is missing: restore it, or start the training"):
        loading.load(str(broken), "1")


def test_a_stage_whose_parent_is_gone(broken, run):
    shutil.rmtree(broken / "stage_0")
    [stage] = [stage for stage in folders.existing_stages(broken) if stage.number == 1]
    with pytest.raises(UserError, match=r"stage 0, which stage 1 \(.*\) was made from, is gone"):
        record.write(broken, run[1], stage)
    [found] = [stage for stage in inventory.read(broken).stages if stage.number == 1]
    assert any("stage 0 at step" in part and "which is gone" in part for part in found.made_from)


def test_parts_of_a_stage_that_are_missing(broken):
    (broken / "stage_1" / "run.json").unlink()
    with pytest.raises(UserError, match="W/stage_1 has no run.json"):
        loading.load(str(broken), "1")
    shutil.rmtree(broken / "stage_2" / "checkpoints")
    with pytest.raises(UserError, match="W/stage_2 has no checkpoint"):
        loading.load(str(broken), "2")


def test_the_folder_of_a_stage_is_no_model(broken):
    with pytest.raises(UserError, match="give the working directory above it, and --stage"):
        loading.load(str(broken / "stage_1"), None)


def test_a_dry_run_refuses_what_a_start_would(tmp_path):
    changes = {"optimizer.decay_steps": 0}
    root, config = tmp_path / "W", clock_config(changes)
    save_stage(root, config, 0, step=3)
    [stage] = folders.existing_stages(root)
    record.check(root, config, stage)
    record.check(root, clock_config(changes | {"log_every": 3}), stage)
    longer = dataclasses.replace(stage, steps=stage.steps + 1)
    with pytest.raises(UserError, match=r"stage.steps=\d+, now it is \d+ \(--max_steps counts\)"):
        record.check(root, config, longer)
    with pytest.raises(UserError, match="seed=0, now it is 3"):
        record.check(root, clock_config(changes | {"seed": 3}), stage)


def test_a_stage_may_end_at_the_step_where_it_is(tmp_path):
    """Its record then says so, and a later stage may start from it."""
    root, config = tmp_path / "W", clock_config({"optimizer.decay_steps": 100})
    save_stage(root, config, 0, step=3)
    [stage] = folders.existing_stages(root)
    assert stage.steps > 3
    record.write(root, config, dataclasses.replace(stage, steps=2))
    [ended] = folders.existing_stages(root)
    assert ended.steps == 3
    record.write(root, config, dataclasses.replace(stage, steps=2))  # and stays so
    assert folders.existing_stages(root) == [ended]
    # A learning rate that falls to 0 at the last step has not fallen yet.
    root, config = tmp_path / "V", clock_config({"optimizer.decay_steps": 0})
    save_stage(root, config, 0, step=3)
    with pytest.raises(UserError, match=r"stage.steps=\d+, now it is 3 .* falls to 0 at the last"):
        record.write(root, config, dataclasses.replace(stage, steps=3))
