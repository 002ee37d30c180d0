"""Every model of a working directory side by side: held-out accuracy, loss, time a token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from scipy.optimize import minimize_scalar

from fqs_jax import checkpoints, generation, scoring, workdir
from fqs_jax.data import corpus
from fqs_jax.data.clock import Clock
from fqs_jax.errors import UserError
from fqs_jax.metrics import Progress
from fqs_jax.workdir import Loaded

BATCH = 256  # problems in an evaluation batch
TIMED_TOKENS = 24


@dataclasses.dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
      accuracy: share of held-out items whose likeliest answer is right, averaged over problem lengths
        and thought seeds; NaN where the run's data has no items.
      accuracy_error: standard error of it over items.
      nll: mean -log p(right answer), renormalised over the answers; or nats a token of text.
      ms_per_token: median time of a generated token, one prompt, after warm-up.
      steps: training steps of this model's own stage.
    """

    stage: str
    name: str
    accuracy: float
    accuracy_error: float
    nll: float
    ms_per_token: float
    steps: int


def compare(
    root: Path,
    thought_seeds: int | None = None,
    text: Sequence[str] = (),
    note: Callable[[str], None] = lambda _: None,
    mesh: Mesh | None = None,
) -> list[Row]:
    """Rows for all trained stages of a working directory, its initial model if that was imported, and
    its base with a fitted temperature.

    Args:
      thought_seeds: how many independently sampled thoughts are averaged; None = 4 for answers, 1
        for text, where thoughts are at every token.
      text: held-out documents, for runs on text.
      note: told the name of each model before it is evaluated.
      mesh: where models are loaded; None = one device.

    Raises:
      UserError: there is nothing to compare, or a run on text got none.
    """
    stages = workdir.existing_stages(root)
    if not stages:
        raise UserError(
            f"{root} has no trained stage; train with python -m fqs_jax.launch --workdir={root}"
        )
    _, config = workdir.read_run(root, stages[0].number)
    task = corpus.clock_task(config.data, config.seed) if config.data.source == "clock" else None
    if task is None and not text:
        raise UserError("this run was trained on text: give held-out text with --text=FILE")
    thought_seeds = thought_seeds or (1 if task is None else 4)
    rows = []
    if config.init_from:
        note("initial model")
        loaded = workdir.load(str(root), "init", mesh=mesh)
        rows.append(_row(loaded, "init", "base", 0, task, text, thought_seeds))
    for stage in stages:
        note(stage.name)
        loaded = workdir.load(str(root), str(stage.number), mesh=mesh)
        folder = workdir.stage_folder(root, stage.number) / "checkpoints"
        step = checkpoints.latest_step(folder) or 0
        name = stage.name if step >= stage.steps else f"{stage.name} (unfinished)"
        rows.append(_row(loaded, str(stage.number), name, step, task, text, thought_seeds))
        if task is not None and stage.number == 0:
            rows.append(_scaled(loaded, rows[-1], task))
    return rows


def _row(
    loaded: Loaded,
    stage: str,
    name: str,
    steps: int,
    task: Clock | None,
    text: Sequence[str],
    seeds: int,
) -> Row:
    seeds = seeds if loaded.thought is not None else 1
    milliseconds = milliseconds_per_token(
        loaded, task.problems("test")[0][0] if task else text[0][:200]
    )
    if task is None:
        with Progress(f"{name}: windows", 0, 0) as bar:
            scores = [
                scoring.text_nll(loaded, text, None, 8, seed, bar.advance_to)
                for seed in range(seeds)
            ]
        nll = float(np.mean([s.get("nll_thought", s["nll_base"]) for s in scores]))
        return Row(stage, name, math.nan, math.nan, nll, milliseconds, steps)
    accuracy, error, nll = clock_accuracy(loaded, task, seeds)
    return Row(stage, name, accuracy, error, nll, milliseconds, steps)


def clock_accuracy(
    loaded: Loaded, task: Clock, seeds: int, split: str = "test"
) -> tuple[float, float, float]:
    """Accuracy of direct answers, its standard error over items, and their NLL; lengths weigh alike."""
    accuracies, variances, nlls = [], [], []
    for length in task.lengths:
        log_probs, right = _answers(loaded, task, split, length, seeds)
        correct = (log_probs.argmax(-1) == right).mean(axis=0)  # over seeds, one an item
        accuracies.append(correct.mean())
        variances.append(correct.var() / len(correct))
        nlls.append(-np.take_along_axis(log_probs, right[None, :, None], -1).mean())
    error = math.sqrt(sum(variances)) / len(variances)
    return float(np.mean(accuracies)), error, float(np.mean(nlls))


def fit_temperature(log_probs_NxC: np.ndarray, right_N: np.ndarray) -> float:
    """The temperature at which these answers' mean NLL is least."""

    def nll(log_temperature: float) -> float:
        return _nll_at(log_probs_NxC, right_N, math.exp(log_temperature))

    return math.exp(minimize_scalar(nll, bounds=(-3.0, 3.0), method="bounded").x)


def milliseconds_per_token(loaded: Loaded, prompt: str) -> float:
    """Median time of one generated token for one prompt, compilation left out."""
    seconds: list[float] = []
    # Ids beyond the text's end count too: a model that stops early is not faster.
    endless = dataclasses.replace(
        loaded, tokenizer=dataclasses.replace(loaded.tokenizer, eos_id=None)
    )
    for _ in range(2):  # the first run compiles
        seconds.clear()
        generation.generate(
            endless, [prompt], TIMED_TOKENS, on_step=lambda emitted: seconds.append(emitted.seconds)
        )
    return float(np.median(seconds[1:]) * 1e3)


def _scaled(base: Loaded, row: Row, task: Clock) -> Row:
    """The base with the temperature that fits the validation items best: sharper, not wiser."""
    answers = [_answers(base, task, "validation", length, 1) for length in task.lengths]
    temperature = fit_temperature(
        np.concatenate([log_probs[0] for log_probs, _ in answers]),
        np.concatenate([right for _, right in answers]),
    )
    tests = [_answers(base, task, "test", length, 1) for length in task.lengths]
    nll = float(np.mean([_nll_at(log_probs[0], right, temperature) for log_probs, right in tests]))
    return dataclasses.replace(row, name=f"base at temperature {temperature:.2f}", nll=nll)


def _answers(
    loaded: Loaded, task: Clock, split: str, length: int, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [seeds, items, answers] and the right answers [items]."""
    problems = task.problems(split, length)
    choices = task.symbols[: task.modulus]
    prompts = [prompt for prompt, _ in problems]
    right = np.array([choices.index(answer) for _, answer in problems])
    scores = [
        scoring.answer_log_probs(loaded, prompts, choices, BATCH, seed) for seed in range(seeds)
    ]
    return np.stack(scores), right


def _nll_at(log_probs_NxC: np.ndarray, right_N: np.ndarray, temperature: float) -> float:
    scaled = log_probs_NxC / temperature
    normaliser = np.log(np.exp(scaled - scaled.max(-1, keepdims=True)).sum(-1)) + scaled.max(-1)
    return float(np.mean(normaliser - np.take_along_axis(scaled, right_N[:, None], -1)[:, 0]))
