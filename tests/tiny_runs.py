"""Inputs for tests of whole runs: random Hugging Face folders, made-up text, tiny configs, programs.

Models are so small that a step takes milliseconds and a run is nearly all start-up. They learn nothing
useful.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import common
from fqs_jax import huggingface
from fqs_jax.curriculum import objective, resolve
from fqs_jax.curriculum.stage import row
from fqs_jax.data import tokenizer_training
from fqs_jax.model import decoder
from fqs_jax.model.config import ModelConfig
from fqs_jax.model.decoder import Params
from fqs_jax.runs import folders, record, source
from fqs_jax.runs.checkpoints import Checkpoints
from tests import preloaded
from tests.conftest import ONE_DEVICE, REPO

SUBJECTS = ("the cat", "a small dog", "one old king", "her friend Tom", "the red bird")
VERBS = ("saw", "liked", "sat on", "ran after", "was afraid of")
OBJECTS = ("the mat", "a big tree", "his hat", "seven stars", "nobody")

# What makes configs/small_hf.py tiny: short rows, small batches, thoughts of 1 and 2 tokens.
TINY = (
    "--config.data.seq_len=24",
    "--config.batch_size=2",
    "--config.stage_1.n_ahead=5",
    "--config.stage_1.n_ahead_talk=2",
    "--config.stage_2.n_ahead=5",
    "--config.stage_2.n_ahead_talk=2",
    "--config.stage_3.n_ahead=4",
    "--config.stage_3.n_ahead_talk=1",
)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {"qkv_bias": True, "tied_embeddings": True},
}


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    parts = [[str(rng.choice(words)) for _ in range(count)] for words in (SUBJECTS, VERBS, OBJECTS)]
    return [f"{subject} {verb} {thing}." for subject, verb, thing in zip(*parts, strict=True)]


def write_text(path: Path, count: int = 200, seed: int = 0) -> Path:
    """Sentences as one .txt document, or as one document each in a .jsonl file."""
    lines = sentences(count, seed)
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": line}) for line in lines]
    path.write_text("\n".join(lines) + "\n")
    return path


def hf_folder(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """A random checkpoint, biases included, with a SentencePiece tokenizer that knows the sentences."""
    words = folder.with_name(f"{folder.name}-tokenizer")
    tokenizer = tokenizer_training.train_sentencepiece(sentences(200), words, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        mlp_dim=24,
        max_seq_len=64,
        **FAMILIES[family],
    )
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32),
        decoder.abstract_params(config),
    )
    huggingface.export(params, config, folder, words)
    return folder


def clock_config(changes: dict[str, Any] | None = None) -> ml_collections.ConfigDict:
    """A curriculum of all objectives from scratch on clock arithmetic, steps of milliseconds."""
    c = common.get_config()
    c.batch_size = 2
    c.model = ml_collections.ConfigDict(
        {
            "width": 16,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 8,
            "mlp_dim": 24,
            "max_seq_len": 64,
        }
    )
    c.compute.dtype = "float32"
    c.compute.remat = "none"
    c.data.source = "clock"
    c.data.seq_len = 16
    c.data.num_documents = 50
    c.optimizer.warmup_steps = 2
    c.thought.start_text, c.thought.end_text = ":", "="
    c.quiet_star.policy_weight = 1.0
    c.ntp.policy_weight = 1.0
    c.checkpoint_every = 100
    rate = {"learning_rate": 1e-2, "steps": 6}
    for number in range(1, 5):
        del c[f"stage_{number}"]
    c.stage_0 = row("base", "next_token", **rate)
    c.stage_1 = row("think-5-2", "quiet_star", start=0, n_ahead=5, n_ahead_talk=2, **rate)
    c.stage_2 = row("think-4-1", "quiet_star", start=1, n_ahead=4, n_ahead_talk=1, **rate)
    c.stage_3 = row("ntp", "ntp", start=0, teacher=2, **rate)
    c.update_from_flattened_dict(changes or {})
    return c


def save_stage(
    root: Path, config: ml_collections.ConfigDict, number: int, seed: int = 0, step: int = 0
) -> Params:
    """Save a stage with random instead of trained parameters, finished unless a step is given."""
    model, _ = source.prepare(root, config)
    recipe = resolve.find(resolve.recipes(config, model), str(number))
    stage = recipe.stage
    record.write(root, config, stage)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype),
        objective.abstract_params(model, recipe.thought),
    )
    with Checkpoints(folders.stage_folder(root, number) / "checkpoints") as saved:
        saved.save(step or stage.steps, params, {"count": jnp.zeros(1)}, {})
    return params


def start(
    module: str, *arguments: Any, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a program of the package as a user does in the repository."""
    return subprocess.Popen(
        [sys.executable, "-m", f"fqs_jax.{module}", *map(str, arguments)],
        cwd=REPO,
        env=os.environ | ONE_DEVICE | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(module: str, *arguments: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program of the package, which must end with the given exit code."""
    environment = os.environ | ONE_DEVICE
    if not preloaded.serves(environment):
        return run_alone(module, *arguments, code=code)
    command = list(map(str, arguments))
    found, out, err = preloaded.run(f"fqs_jax.{module}", command, REPO, environment)
    assert found == code, f"exit {found}\n{out}\n{err}"
    return subprocess.CompletedProcess(command, code, out, err)


def run_alone(
    module: str, *arguments: Any, code: int = 0, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same in a process that imports everything itself and ends as programs end."""
    process = start(module, *arguments, environment=environment)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(process.args, code, out, err)


def refusal(module: str, *arguments: Any) -> str:
    """The one line on standard error with which a program refuses its arguments."""
    done = run(module, *arguments, code=2)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def rows_without_time(path: Path) -> list[dict[str, Any]]:
    """Every row of a metrics file, without times."""
    rows = map(json.loads, path.read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]
