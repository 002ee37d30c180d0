"""Configs: their architectures are the published ones, and each of their steps compiles."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import ml_collections
import pytest

from fqs_jax import huggingface
from fqs_jax.curriculum import resolve
from fqs_jax.data import corpus
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.problems.stories import Stories
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.planning import step_plan, topologies
from fqs_jax.runtime import sharding
from tests.chats import write_bpe
from tests.data.problems import test_stories as stories

# Parameters as the checkpoints' own index files count them.
PARAMETERS = {
    "mistral_7b": 7_241_732_096,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_0_5b": 494_032_768,
    "llama3_8b": 8_030_261_248,
}
FOLDERS = {
    "mistral_7b": "Mistral-7B-v0.1",
    "qwen2_5_7b": "Qwen2.5-7B-Instruct",
    "qwen2_5_0_5b": "Qwen2.5-0.5B-Instruct",
}
# Of further families: the sizes in their config.json, counted from shapes.
MORE_PARAMETERS = {
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "smollm3_3b": 3_075_098_624,
    "olmo2_1b": 1_484_916_736,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
}
names = pytest.mark.parametrize("name", PARAMETERS)


def config(name: str) -> ml_collections.ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", PARAMETERS | MORE_PARAMETERS)
def test_parameters(name: str) -> None:
    model = step_plan.architecture(config(name))
    expected = (PARAMETERS | MORE_PARAMETERS)[name]
    assert decoder.num_params(decoder.abstract_params(model)) == expected


@pytest.mark.parametrize("name", MORE_PARAMETERS)
def test_a_config_file_can_be_written_for_it(name: str) -> None:
    """An architecture that transformers has, so an export of the trained model has a config.json."""
    raw = huggingface.write_config(step_plan.architecture(config(name)), "bfloat16", {})
    assert raw["model_type"].startswith(name.split("_")[0])


@pytest.mark.parametrize("name", FOLDERS)
def test_the_architecture_is_that_of_the_checkpoint(name: str, shared: Path) -> None:
    c = config(name)
    theirs = huggingface.read_config(shared / "real" / "configs" / FOLDERS[name])
    ours = step_plan.architecture(c)
    assert ours == dataclasses.replace(theirs, **c.compute.to_dict())


# Layers of several kinds take minutes to trace; tests/huggingface/test_architectures.py has small ones.
@pytest.mark.parametrize("name", [*PARAMETERS, "qwen3_0_6b", "olmo2_1b"])
def test_a_thinking_step_is_traced_at_full_size(name: str) -> None:
    """Shapes and settings fit together, and the program does no more than the count from shapes."""
    c = config(name)
    model = step_plan.architecture(c)
    recipe = resolve.find(resolve.recipes(c, model), "1")
    mesh = sharding.make_mesh(c.mesh, topologies.find("cpu:8")[1])
    counted = step_plan.count_flops(recipe, mesh)
    assert 1 < counted.program / counted.model < 1.15


@pytest.mark.parametrize(
    "name", ["qwen2_5_7b", pytest.param("mistral_7b", marks=pytest.mark.exhaustive)]
)
def test_the_thought_free_step_is_compiled_for_eight_devices(name: str) -> None:
    """At full size: the devices are virtual and nothing is run."""
    c = config(name)
    chip, devices = topologies.find("cpu:8")
    mesh = sharding.make_mesh(c.mesh, devices)
    model = step_plan.architecture(c)
    plan = step_plan.plan(resolve.find(resolve.recipes(c, model), "4"), chip, mesh)
    assert plan.fits and plan.row_groups == 8
    assert plan.flops.program / plan.flops.model < 1.15
    state = plan.parameters * 3 * (4 if c.compute.param_dtype == "float32" else 2)
    assert plan.memory is not None and state / 8 < plan.memory.arguments < 1.1 * state / 8


def test_word_problems_fit_rows_and_thoughts(tmp_path: Path) -> None:
    """In a tokenizer in which each word is a token, as nearly all are in SmolLM2's."""
    c = config("smollm2_word_problems")
    task = corpus.built_in_task(c.data, 0)
    assert c.requires_init_from and isinstance(task, Stories)
    documents = dataclasses.replace(task, worked=1.0, direct=0.0).documents(3000)
    write_bpe(tmp_path, documents, ["<s>"], "", vocab_size=1500)
    tokenizer = tokenizer_lib.load(tmp_path)
    lengths = [len(tokenizer.encode(document)) for document in documents]
    assert (
        c.data.seq_len - 2 <= max(lengths) <= c.data.seq_len
    )  # one word may begin with two tokens
    assert len(task.problems("test")) == len(task.problems("new_wording")) == 172

    start, end = (tokenizer.encode(text) for text in (c.thought.start_text, c.thought.end_text))
    assert len(start) == len(end) == 1
    ids = tokenizer.encode(documents[0])
    begin = ids.index(start[0])
    assert ids[begin - 1] == ids[-2] == end[0]  # "= : WORK = ANSWER"
    think = c.stage_1
    assert len(ids[begin + 1 : -2]) == think.n_ahead - 3 == len(task.problem(2, 0).work)

    model = ModelConfig(49152, 576, 30, 9, 3, 64, 1536, tied_embeddings=True)
    base, think, student, *controls = resolve.recipes(c, model)
    tokens = [each.stage.steps * each.seq_len for each in (think, student, controls[0])]
    assert sum(tokens[:2]) == pytest.approx(tokens[2], abs=c.data.seq_len)
    assert controls[1].stage.steps > controls[0].stage.steps
    for recipe in (base, think, student, *controls):
        own = corpus.built_in_task(recipe.data, 0)
        assert own is not None
        longest = max(len(tokenizer.encode(text)) for text in set(own.documents(3000)))
        assert recipe.seq_len - 3 <= longest <= recipe.seq_len
    answered, asked = (
        {stories.problem(text.split(" =")[0] + " =") for text in task.documents(20_000)}
        for task in (corpus.built_in_task(each.data, 0) for each in (think, student))
        if task is not None
    )
    assert answered < asked and (len(answered), len(asked)) == (65, 645)
