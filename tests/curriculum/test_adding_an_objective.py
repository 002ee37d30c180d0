"""The example of docs/adding-an-objective.md: one file and one table row are all a new objective needs."""

import functools
import re
import signal
import types
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from fqs_jax.curriculum import objective, resolve, row
from fqs_jax.evaluation import comparison
from fqs_jax.model import decoder
from fqs_jax.planning import step_plan, topologies
from fqs_jax.runs import folders, source
from fqs_jax.runs.metrics_file import read_events, read_rows
from fqs_jax.runtime import sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupted, Interrupts
from fqs_jax.thinking import flops
from fqs_jax.training import loop, start
from tests.conftest import REPO
from tests.tiny_runs import clock_config

PAGE = (REPO / "docs" / "adding-an-objective.md").read_text()
MODULE, ROW, STAGE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def smoothed(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The page's file as a module, its row in the table."""
    module = types.ModuleType("smoothed")
    monkeypatch.setitem(__import__("sys").modules, "smoothed", module)
    exec(MODULE, module.__dict__)
    table = dict(objective.OBJECTIVES)
    names = {"OBJECTIVES": table, "Objective": objective.Objective, "flops": flops}
    exec(ROW, names | {"functools": functools, **vars(module)})
    monkeypatch.setitem(objective.OBJECTIVES, "smoothed", table["smoothed"])
    return module


def config_with_stage() -> ml_collections.ConfigDict:
    config = clock_config({"stage_0.steps": 2})
    for number in (1, 2, 3):
        del config[f"stage_{number}"]
    exec(STAGE, {"c": config, "row": row, "ml_collections": ml_collections})
    return config


class StopAfterOneStep(Interrupts):
    """Interrupts that request a stop after the first step."""

    def __init__(self) -> None:
        self.looks = 0
        super().__init__()

    @property
    def signum(self) -> int | None:
        self.looks += 1
        return signal.SIGTERM if self.looks > 2 else None  # looks before and after compiling

    @signum.setter
    def signum(self, value: int | None) -> None:
        assert value is None


def test_it_trains_resumes_and_is_compared(tmp_path: Any, smoothed: types.ModuleType) -> None:
    config, root = config_with_stage(), tmp_path / "W"
    model, tokenizer = source.prepare(root, config)
    base, own = resolve.recipes(config, model)
    assert own.objective == smoothed.SmoothedConfig(0.1)

    def run(interrupts: Interrupts) -> start.Run:
        return start.Run(root, config, tokenizer, sharding.single_device(), interrupts, str)

    loop.run_stage(run(Interrupts()), base)
    with pytest.raises(Interrupted, match="saved at step 1 of 2"):
        loop.run_stage(run(StopAfterOneStep()), own)
    loop.run_stage(run(Interrupts()), own)
    assert folders.saved_step(root, 4) == 2
    metrics = root / "stage_4" / "metrics.jsonl"
    assert [r["step"] for r in read_rows(metrics)] == [1, 2]
    assert read_events(metrics, "start")[0]["flops_per_step"] == objective.step_flops(own) > 0
    # The section stays out of the records of other stages.
    assert "smoothed" not in folders.read_run(root, 0)[1]
    assert folders.read_run(root, 4)[1].smoothed.smoothing == 0.1
    names = {r.name for r in comparison.compare(root, timed=False)}
    assert {"base", "smoothed"} <= names


def test_it_is_planned(smoothed: types.ModuleType) -> None:
    config = config_with_stage()
    config.model.vocab_size = 32
    recipes = resolve.recipes(config, step_plan.architecture(config))
    chip, devices = topologies.find("cpu:2")
    plan = step_plan.plan(
        resolve.find(recipes, "smoothed"), chip, sharding.make_mesh(config.mesh, list(devices))
    )
    assert plan.fits and plan.flops.model == objective.step_flops(recipes[-1])


def test_its_loss_is_the_formula(smoothed: types.ModuleType) -> None:
    config = config_with_stage()
    config.model.vocab_size = 32
    own = resolve.recipes(config, step_plan.architecture(config))[-1]
    params = {"lm": decoder.init(own.model, jax.random.key(0))}
    tokens = np.random.default_rng(0).integers(0, 32, (2, 8))
    batch = {"tokens": jnp.asarray(tokens), "mask": jnp.arange(8) < jnp.array([[8], [5]])}
    loss, _ = objective.loss_function(own)(params, batch, jax.random.key(1))

    hidden, _ = decoder.text_forward(params["lm"], batch["tokens"], own.model)
    logits = np.asarray(decoder.head_logits(params["lm"], hidden), np.float64)
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    terms = [
        -0.9 * log_q[b, t, tokens[b, t + 1]] - 0.1 * log_q[b, t].mean()
        for b, length in ((0, 8), (1, 5))
        for t in range(length - 1)
    ]
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)


def test_a_config_without_its_section_is_refused(smoothed: types.ModuleType) -> None:
    config = config_with_stage()
    del config.smoothed
    config.model.vocab_size = 32
    with pytest.raises(UserError, match="no section 'smoothed', the settings of stage 4"):
        resolve.recipes(config, step_plan.architecture(config))


def test_recipes_are_resolved_once_per_stage(
    smoothed: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """From the config to the end of training, each stage's recipe is resolved once."""
    resolved = []
    recipe_of = resolve.recipe

    def counted(config: Any, stage: Any, model: Any) -> Any:
        resolved.append(stage.number)
        return recipe_of(config, stage, model)

    monkeypatch.setattr(resolve, "recipe", counted)
    config, root = config_with_stage(), tmp_path / "W"
    model, tokenizer = source.prepare(root, config)
    run = start.Run(root, config, tokenizer, sharding.single_device(), Interrupts(), str)
    for recipe in resolve.recipes(config, model):
        loop.run_stage(run, recipe)
    assert resolved == [0, 4]
