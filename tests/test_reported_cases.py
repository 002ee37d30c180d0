"""The inputs of fourteen public bug reports, through the programs, beside the optional real inputs.

Each kind of fault has tests of its own that make their inputs; these are the reports themselves.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.sources.documents import read_documents
from fqs_jax.evaluation.tasks.answers import final_number
from fqs_jax.inference.generation import generate
from fqs_jax.runs import loading
from fqs_jax.runs.metrics_file import read_rows
from tests.tiny_runs import refusal, run, run_alone

pytestmark = pytest.mark.slow

PLAIN = ("--config=configs/small_hf.py", "--stage=1", "--config.stage_1.objective=next_token")
SHORT = ("--config.data.seq_len=32", "--config.batch_size=1", "--max_steps=1")


@pytest.fixture
def case(shared, request) -> Path:
    """The folder of the case that a test's name begins with."""
    number = request.function.__name__.split("_")[1]
    [folder] = (shared / "cases").glob(f"{number}_*")
    return folder


def trained(case: Path, workdir: Path, model: str = "model", *arguments: Any) -> tuple[Any, ...]:
    files = (f"--init_from={case / model}", f"--text={case / 'text.jsonl'}", f"--workdir={workdir}")
    return ("launch", *PLAIN, *SHORT, *files, *arguments)


def last_line(*arguments: Any) -> str:
    """The refusal of a program that prints notes before it."""
    line = run(*arguments, code=2).stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def loss(model: Path, text: Path) -> float:
    done = run("evaluate", f"--checkpoint={model}", f"--text={text}", "--json")
    return json.loads(done.stdout)["nll_base"]


@pytest.mark.exhaustive
def test_01_one_nan_step_ends_the_run(case, tmp_path):
    arguments = ("--config.data.seq_len=64", "--max_steps=40")
    run(*trained(case, tmp_path / "W", "model", *arguments))
    rows = read_rows(tmp_path / "W/stage_1/metrics.jsonl")
    assert rows[-1]["step"] == 40 and 0 < rows[-1]["skipped_steps"] < 40


def test_02_several_end_tokens(case):
    [result] = generate(loading.load(str(case / "model")), ["Once upon a time"], 12)
    assert list(result.tokens) == [19, 114]


@pytest.mark.parametrize("model", ["short", "eos_out", "eos_far", "bos_far", "other_tokenizer"])
def test_03_ids_beyond_the_table(case, tmp_path, model):
    assert "embedding" in last_line(*trained(case, tmp_path / "W", model))
    assert not (tmp_path / "W").exists() or not list((tmp_path / "W").glob("stage_*/metrics.jsonl"))


def test_04_added_tokens_beside_tokenizer_model(case):
    tokenizer = tokenizer_lib.load(case / "model")
    chat = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    ids = list(tokenizer.encode(chat))
    assert len(ids) == 23 and ids[:3] == [513, 318, 419]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(case / "model")
    assert ids == theirs.encode(chat, add_special_tokens=False)
    assert tokenizer.decode([513, 400]) == "<|im_start|> do"


@pytest.mark.parametrize("model", ["tiktoken", "empty", "lfs", "of_the_base"])
def test_05_tokenizer_model_that_is_none(case, model):
    assert list(tokenizer_lib.load(case / model).encode("Once upon")) == [332, 339, 355, 289]


def test_06_addresses_and_tilde(case, tmp_path):
    for address in ("s3://bucket/run", "gs://bucket"):
        line = refusal(*trained(case, tmp_path, "model", f"--workdir={address}"))
        assert address in line
        assert "az://bucket/out" in refusal(
            "convert", f"--workdir={tmp_path}", "--stage=1", "--export=az://bucket/out"
        )
    (tmp_path / "model").symlink_to(case / "model")
    options = ("--checkpoint=~/model", "--prompt=Once", "--max_new_tokens=2")
    run_alone("generate", *options, environment={"HOME": str(tmp_path)})
    assert not any(Path(name).exists() for name in ("gs:", "s3:", "~"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", ["nan_mlp", "inf_head"])
def test_07_weights_that_are_no_numbers(case, tmp_path, model):
    checkpoint = f"--checkpoint={case / model}"
    for line in (
        refusal("evaluate", checkpoint, f"--text={case / 'text.jsonl'}", "--json"),
        refusal("evaluate", checkpoint, "--task=csqa", f"--task_file={case / 'csqa.jsonl'}"),
        refusal(*trained(case, tmp_path / "W", model)),
    ):
        assert "model.safetensors" in line and ("mlp" in line or "head" in line)


@pytest.mark.exhaustive
def test_08_float16_overflow(case, tmp_path):
    run(*trained(case, tmp_path / "W"))
    export = (f"--workdir={tmp_path / 'W'}", "--stage=1", f"--export={tmp_path / 'out'}")
    line = refusal("convert", *export, "--dtype=float16")
    assert "lm_head.weight" in line and "float16" in line
    assert not (tmp_path / "out").exists()
    run("convert", *export, "--dtype=bfloat16")
    assert math.isfinite(loss(tmp_path / "out", case / "text.jsonl"))


def test_09_numbers_of_worked_answers(case):
    for line in (case / "answers.jsonl").open():
        record = json.loads(line)
        assert float(final_number(record["text"])) == record["number"], record["text"]


def test_10_columns_of_strings(case):
    files = sorted([*case.glob("*.parquet"), *case.glob("*.jsonl")])
    assert len(files) == 7
    documents = {tuple(read_documents(str(file))) for file in files}
    assert len(documents) == 1


@pytest.mark.exhaustive
def test_11_harness_options(case):
    pytest.importorskip("lm_eval")
    options = ("run", "--model", "fqs_jax", "--tasks", "one", "--include_path", str(case))
    given = f"checkpoint={case / 'model'},dtype=float32"
    line = last_line("lm_eval_adapter", *options, "--model_args", given)
    assert "dtype" in line and "checkpoint" in line


@pytest.mark.exhaustive
def test_12_overrides(case, tmp_path):
    run(*trained(case, tmp_path / "A", "model", "--dry_run", "--config.stage_2.start=None"))
    run(*trained(case, tmp_path / "B", "model", f"--flagfile={case / 'flags.txt'}"))
    [command] = [
        line for line in (tmp_path / "B/commands.txt").read_text().splitlines() if "launch" in line
    ]
    assert "--config.batch_size=2" in command and "flagfile" not in command


@pytest.mark.exhaustive
def test_13_answer_ends_in_a_newline(case):
    def arguments(name: str) -> tuple[str, ...]:
        file = f"--task_file={case / name}.jsonl"
        return "evaluate", f"--checkpoint={case / 'model'}", "--task=gsm8k", file, "--json"

    plain, newline = (
        json.loads(run(*arguments(name)).stdout.splitlines()[-1])["expected_prob"]
        for name in ("plain", "newline")
    )
    assert newline == plain
    assert "'answer' holds a number" in refusal(*arguments("number"))


@pytest.mark.parametrize("model", ["adapter", "adapter_and_config"])
def test_14_adapter_folder(case, model):
    line = refusal("generate", f"--checkpoint={case / model}", "--prompt=a")
    assert "adapter" in line and "merge" in line
