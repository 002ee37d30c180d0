"""Gradient variance and learning of a small model that thinks at some positions only."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.flatten_util import ravel_pytree

from fqs_jax.configs import shorten
from fqs_jax.curriculum import objective, resolve, settings
from fqs_jax.curriculum.recipe import Recipe
from fqs_jax.data import corpus
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.evaluation import problems
from fqs_jax.inference import loaded as loaded_lib
from fqs_jax.model.decoder import Params
from fqs_jax.model.decoder import init as init_model
from fqs_jax.runs import source
from fqs_jax.thinking import parameters
from fqs_jax.thinking.config import Thinker
from fqs_jax.training import optimizer
from fqs_jax.training import step as step_lib

Kind = tuple[float, str]  # position_fraction, positions
Rows = list[dict[str, Any]]
_BRIEF = 60  # thinking steps before variances are measured
_QUARTERS = 4  # evaluations of a run
_THOUGHT_SEEDS = 4


class Setting(NamedTuple):
    """A base model, and the first thinking stage after it."""

    config: ml_collections.ConfigDict
    tokenizer: Tokenizer
    recipe: Recipe
    base: Params
    marks: tuple[int, int]


def prepare() -> Setting:
    """The setting of configs/shorten.py, with its base trained."""
    config = shorten.get_config()
    config.optimizer.decay_steps = (
        100_000  # as good as constant: a run of any length is a part of it
    )
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = source.prepare(Path(folder), config)
    base, think, *_ = resolve.recipes(config, model)
    marks = source.mark_ids(config, tokenizer)
    setting = Setting(config, tokenizer, base, {}, marks)
    params = {"lm": init_model(model, jax.random.key(config.seed))}
    params = _train(setting, _step(setting), params, base.stage.steps)
    return Setting(config, tokenizer, think, params, marks)


def variances(setting: Setting, kinds: Sequence[Kind], draws: int) -> Rows:
    """One row for each kind, with one batch and with fresh ones; the first kind must think everywhere."""
    params = _train(setting, _step(setting), _beginning(setting, 0), _BRIEF)
    data = _data(setting, stream=99)
    rows: Rows = []
    everywhere: dict[str, np.ndarray] = {}
    for kind in kinds:
        gradient = _gradient(objective.loss_function(_with_positions(setting.recipe, kind)))
        relative_flops = _flops(setting, kind) / _flops(setting, kinds[0])
        for i, batches in enumerate(("same", "fresh")):
            found = np.stack(
                [
                    gradient(params, data.batch(draw * i), jax.random.key(draw))
                    for draw in range(draws)
                ]
            )
            everywhere.setdefault(batches, found)
            row: dict[str, Any] = {"batch": batches, "fraction": kind[0], "positions": kind[1]}
            row |= {"flops": relative_flops} | _moments(found, everywhere[batches])
            first = rows[i]["variance"] if len(rows) > 1 else row["variance"]
            row |= {"efficiency": relative_flops * row["variance"] / first, "draws": draws}
            print(json.dumps({"part": "variance"} | _rounded(row)), flush=True)
            rows.append(row)
    return sorted(rows, key=lambda row: row["batch"], reverse=True)


def _gradient(loss: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def flat(params: Params, batch: Any, key: jax.Array) -> jax.Array:
        return ravel_pytree(jax.grad(loss, has_aux=True)(params, batch, key)[0])[0]

    compiled = jax.jit(flat)
    return lambda *arguments: np.asarray(compiled(*arguments))


def _moments(found: np.ndarray, everywhere: np.ndarray) -> dict[str, float]:
    """Variances of gradients.

    Args:
      found: gradients [draws, parameters].
      everywhere: gradients of the same batches and thoughts at all positions.
    """
    draws = len(found)
    scale = _square_of_mean(everywhere)
    deviation = np.sum(np.square(found - found.mean(0)), axis=1) * draws / (draws - 1) / scale
    choice = np.sum(np.square(found - everywhere), axis=1) / scale
    return {
        "variance": float(deviation.mean()),
        "variance_error": float(deviation.std() / np.sqrt(draws)),
        "from_choice": float(choice.mean()),
    }


def _square_of_mean(found: np.ndarray) -> float:
    """Squared norm of the mean gradient, less the part that is due to noise."""
    mean = found.mean(0)
    noise = np.sum(found.var(0, ddof=1)) / len(found)
    return float(np.sum(np.square(mean)) - noise)


def learning(setting: Setting, kinds: Sequence[Kind], seeds: Iterable[int], steps: int) -> Rows:
    """Train each kind for the FLOPs of `steps` steps of thinking everywhere, with evaluations on the way.

    Rows are means over seeds, with standard deviations. Each run is also evaluated after `steps` steps, if
    it takes that many.
    """
    full = steps * _flops(setting, kinds[0])
    rows: Rows = []
    for kind in kinds:
        cost = _flops(setting, kind)
        stops = {round(full / cost * quarter / _QUARTERS) for quarter in range(1, _QUARTERS + 1)}
        found = _runs(setting, kind, seeds, sorted(stops | {steps}))
        for stop, (accuracy, nll) in found.items():
            row = {"fraction": kind[0], "positions": kind[1], "steps": stop}
            row |= {"flops": stop * cost / full}
            rows.append(row | _spread("accuracy", accuracy) | _spread("nll", nll))
    return rows


def _runs(
    setting: Setting, kind: Kind, seeds: Iterable[int], stops: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Accuracies and NLLs, one for each seed, by number of steps."""
    setting = setting._replace(recipe=_with_positions(setting.recipe, kind))
    found: dict[int, list[tuple[float, float]]] = {stop: [] for stop in stops}
    step = _step(setting)

    def note(done: int, params: Params) -> None:
        if done not in found:
            return
        accuracy, _, nll = _answers(setting, params)
        found[done].append((accuracy, nll))
        line = {"fraction": kind[0], "positions": kind[1], "step": done}
        line |= {"accuracy": accuracy, "nll": nll, "cpu_seconds": time.process_time()}
        print(json.dumps({"part": "learning"} | _rounded(line)), flush=True)

    for seed in seeds:
        _train(setting, step, _beginning(setting, seed), stops[-1], seed, note)
    return {
        stop: (np.array(a), np.array(n))
        for stop, pairs in found.items()
        for a, n in [zip(*pairs, strict=True)]
    }


def _flops(setting: Setting, kind: Kind) -> int:
    return objective.step_flops(_with_positions(setting.recipe, kind))


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {name: float(values.mean()), f"{name}_std": deviation}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}


def _with_positions(recipe: Recipe, kind: Kind) -> Recipe:
    fraction, positions = kind
    chosen = dataclasses.replace(recipe.objective, position_fraction=fraction, positions=positions)
    return dataclasses.replace(recipe, objective=chosen)


def _beginning(setting: Setting, seed: int) -> Params:
    """The base with a fresh talk head and marks."""
    model, thought, lm = setting.recipe.model, setting.recipe.thought, setting.base["lm"]
    assert thought is not None
    key = jax.random.key(seed)
    return {"lm": lm, "thought": parameters.init(Thinker(model, thought), lm, key, *setting.marks)}


def _data(setting: Setting, stream: int) -> Any:
    # One seed for all, because it also decides which problems of the task are held out.
    config = setting.config
    return corpus.dataset(config.data, setting.tokenizer, config.batch_size, config.seed, stream)


def _transform(setting: Setting) -> Any:
    recipe = setting.recipe
    return optimizer.make(recipe.optimizer, recipe.stage.learning_rate, recipe.stage.steps)


def _step(setting: Setting) -> Any:
    """The compiled step of the setting's stage."""
    loss = objective.loss_function(setting.recipe)
    key = step_lib.stage_key(setting.recipe)
    return jax.jit(step_lib.make_step(loss, _transform(setting), key))


def _train(
    setting: Setting,
    step: Any,
    params: Params,
    steps: int,
    seed: int = 0,
    note: Callable[[int, Params], None] = lambda *_: None,
) -> Params:
    """Parameters after some steps; `note` is called with them after each. Every seed has its own data."""
    state = step_lib.State(params, _transform(setting).init(params))
    stream = 10 * setting.recipe.stage.number + seed
    for done, batch in enumerate(_data(setting, stream).batches(0, steps)):
        # The number only sets the step's random key.
        state, _ = step(state, batch, jnp.int32(done + 100_000 * seed))
        note(done + 1, state.params)
    return state.params


def _answers(setting: Setting, params: Params) -> tuple[float, float, float]:
    """Held-out problems answered at once, after a thought: `problems.task_accuracy`."""
    thought = settings.thought_config(
        setting.config, setting.recipe.stage, rationales=1, n_ahead_talk=1
    )
    thought = dataclasses.replace(thought, temperature=setting.config.thought.eval_temperature)
    loaded = loaded_lib.Loaded(
        params,
        setting.recipe.model,
        setting.tokenizer,
        thought,
        Path("."),
        setting.recipe.stage.name,
    )
    task = corpus.built_in_task(setting.config.data, setting.config.seed)
    assert task is not None  # configs/shorten.py has one
    return problems.task_accuracy(loaded, task, _THOUGHT_SEEDS)
