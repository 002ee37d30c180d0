"""All models of a working directory side by side: held-out accuracy, loss, cost of a token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from fqs_jax.curriculum import objective
from fqs_jax.data import corpus
from fqs_jax.data.problems.task import Task
from fqs_jax.evaluation import problems, statistics, timing
from fqs_jax.evaluation import text as text_lib
from fqs_jax.evaluation.problems import Answers
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.inference import generation
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import folders
from fqs_jax.runs.loading import models, trained_stages
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.progress import Progress
from fqs_jax.thinking import flops

# Temperatures tried for the base on text.
TEMPERATURES = tuple(np.exp(np.linspace(-0.75, 0.75, 31)).tolist())
TEST = "test"  # the split on which models are compared; `Task.more_splits` have rows of their own
VALIDATION = "validation"


@dataclasses.dataclass(frozen=True)
class Row:
    """The scores of one model.

    Attributes:
      stage: number of its stage, or "init".
      accuracy: share of held-out items answered right, each symbol of the answer likeliest given those
        before it, averaged over problem lengths and thoughts; NaN where the run's data has no items.
        Its Wilson interval over items treats all lengths as one and all thoughts as equal, so it is
        rather too wide.
      accuracy_error: standard error of the accuracy over items.
      nll: mean -log p(right answer), renormalised over the task's answers; or nats a token of text.
      ms_per_token: median time of a generated token, one prompt; equal for models that run the same
        program (evaluation/timing.py); NaN where it was not timed.
      steps: training steps of this model's own stage.
      kind: "base", "thinking", "student" (taught by thoughts, has none) or "control".
      temperature: divisor of the logits.
      flops_per_token: FLOPs of a generated token, thought and head included (thinking/flops.py).
      nll_easy, nll_middle, nll_hard: nll of each third of the items, or tokens, sorted by their loss
        under the first row's model; NaN where unknown.
      split: of the problems (data/problems/task.py); "test" on text too.
      answering: mean probability, among all tokens, that an answer begins behind the prompt, which accuracy
        and nll take for granted; NaN on text, and if no token of its own stands behind the prompt.
    """

    stage: str
    name: str
    accuracy: Interval = statistics.UNKNOWN
    accuracy_error: float = math.nan
    nll: float = math.nan
    ms_per_token: float = math.nan
    steps: int = 0
    kind: str = "base"
    flops_per_token: int = 0
    nll_easy: float = math.nan
    nll_middle: float = math.nan
    nll_hard: float = math.nan
    temperature: float = 1.0
    split: str = TEST
    answering: float = math.nan


def compare(
    root: Path,
    thought_seeds: int | None = None,
    text: Sequence[str] = (),
    note: Callable[[str], None] = lambda _: None,
    mesh: Mesh | None = None,
    seed: int = 0,
    seq_len: int | None = None,
    batch_size: int | None = None,
    timed: bool = True,
    validation: bool = False,
) -> list[Row]:
    """Compare all trained stages of a working directory.

    Args:
      thought_seeds: number of sampled thoughts that are averaged; None = 4 for answers, 1 for text,
        where every token has a thought.
      text: held-out documents, for runs on text.
      note: called with the name of each model before it is evaluated.
      mesh: devices that models are loaded on; None = one device.
      seed: of sampled thoughts.
      seq_len: tokens of a window of text, as for `text.score`.
      batch_size: windows of text, or problems, that are read at once.
      timed: False skips the timing, which takes seconds a program, and leaves ms_per_token NaN.
      validation: adds a row for each model on validation problems.

    Returns:
      A row for the initial model if that was imported, and one for each trained stage. Behind the
      first of them, if it does not think, there is a row for it at a fitted temperature. If the task has
      more splits, there is a row for each model and each of them too.

    Raises:
      UserError: there is nothing to compare, a run on text got none, or one on problems got some, or
        windows.
    """
    _, config = folders.read_run(root, trained_stages(root)[0].number)
    task = corpus.built_in_task(config.data, config.seed)
    if task is None and not text:
        raise UserError("this run was trained on text: give held-out text with --text=FILE")
    if task is not None and text:
        raise UserError("this run has held-out problems of its own; leave --text out")
    if task is not None and seq_len:
        raise UserError("this run has held-out problems, which are no windows; leave --seq_len out")
    thought_seeds = thought_seeds or (1 if task is None else 4)
    scores: list[tuple[Row, timing.Program]] = []
    times = timing.TokenTimes()
    further = [*(task.more_splits if task else ()), *([VALIDATION] if task and validation else ())]
    first: dict[str, np.ndarray] = {}  # the first model's loss by item: the difficulty of the items
    for number, name, step, loaded in models(root, note, mesh):
        prompt = task.problems(TEST)[0][0] if task else text[0][:200]
        row = Row(
            stage=number,
            name=name,
            steps=step,
            kind=kind_of(root, number),
            flops_per_token=flops_per_token(loaded, prompt),
        )
        program = times.add(loaded)
        for each in (TEST, *further):
            known = first.get(each)
            if task is not None:
                own = _on_split(row, each)
                found, scaled, nll_N = _on_answers(
                    loaded, own, task, thought_seeds, seed, known, batch_size or problems.BATCH
                )
            else:
                found, scaled, nll_N = _on_text(
                    loaded, row, text, thought_seeds, seed, known, seq_len, batch_size or 8
                )
            first.setdefault(each, nll_N)
            scores += [(found, program)] + ([(scaled, program)] if scaled is not None else [])
    if not timed:
        return [row for row, _ in scores]
    milliseconds = times.milliseconds(prompt)
    return [dataclasses.replace(row, ms_per_token=milliseconds[program]) for row, program in scores]


def _on_split(row: Row, split: str) -> Row:
    """The row of a model for one of the splits; its name tells any but the one of tests."""
    name = row.name if split == TEST else f"{row.name}: {split}"
    return dataclasses.replace(row, name=name, split=split)


def kind_of(root: Path, number: str) -> str:
    """The `kind` of a row: of the initial model ("init"), or of a stage's number."""
    if number == "init":
        return "base"
    stage, _ = folders.read_run(root, int(number))
    return "control" if stage.control else objective.of(stage).kind


def _on_answers(
    loaded: Loaded,
    row: Row,
    task: Task,
    thoughts: int,
    seed: int,
    first_N: np.ndarray | None,
    batch_size: int,
) -> tuple[Row, Row | None, np.ndarray]:
    """The row of a model on problems, its row at a fitted temperature, and its loss by item.

    Args:
      row: names the split.
      first_N: the first model's loss by item; None for that model itself. Only the first model, if it
        does not think, gets a fitted temperature, and on test problems only.
    """
    answers = problems.read(loaded, task, row.split, thoughts, seed, batch_size)
    accuracy, error, nll = problems.accuracy(answers)
    nll_N = problems.nll_by_item(answers)
    row = dataclasses.replace(
        row,
        accuracy=statistics.wilson(accuracy, len(nll_N)),
        accuracy_error=error,
        nll=nll,
        answering=problems.answering(answers),
    )
    row = _by_difficulty(row, nll_N, nll_N if first_N is None else first_N)
    is_first = first_N is None and row.split == TEST
    fits = is_first and loaded.thought is None and math.isfinite(nll)
    scaled = None
    if fits:
        checks = problems.read(loaded, task, VALIDATION, batch_size=batch_size)
        scaled = _scaled(row, problems.fit_to_answers(checks), answers, nll_N)
    return row, scaled, nll_N


def _on_text(
    loaded: Loaded,
    row: Row,
    text: Sequence[str],
    thoughts: int,
    seed: int,
    first_N: np.ndarray | None,
    seq_len: int | None,
    batch_size: int,
) -> tuple[Row, Row | None, np.ndarray]:
    """The same as `_on_answers` on text, by token."""
    temperatures = TEMPERATURES if first_N is None and loaded.thought is None else ()
    with Progress(f"{row.name}: windows", 0, 0) as bar:
        scores = text_lib.score(
            loaded, text, seq_len, batch_size, seed, temperatures, thoughts, bar.advance_to
        )
    nll_N = -scores.best_RxN.mean(axis=0, dtype=np.float64)
    difficulty_N = nll_N if first_N is None else first_N
    row = _by_difficulty(dataclasses.replace(row, nll=float(nll_N.mean())), nll_N, difficulty_N)
    if not temperatures or not math.isfinite(row.nll):
        return row, None, nll_N  # a broken model cannot be fitted
    scaled_N, chosen = at_best_temperature(scores)
    if not chosen:
        return row, None, nll_N
    scaled = _at_temperature(row, math.sqrt(math.prod(chosen)), max(TEMPERATURES))
    scaled = dataclasses.replace(scaled, nll=float(scaled_N.mean()))
    return row, _by_difficulty(scaled, scaled_N, difficulty_N), nll_N


def at_best_temperature(scores: text_lib.TokenScores) -> tuple[np.ndarray, tuple[float, ...]]:
    """The losses of a text's tokens at the temperatures that fit the other half of its windows best.

    Args:
      scores: of a model that does not think, at all TEMPERATURES.

    Returns:
      Losses [N] in nats, and both temperatures; none for one window, which cannot be divided.
    """
    odd_N = scores.window_N % 2 == 1
    scaled_N, chosen = -scores.plain_N.astype(np.float64), []
    if scores.window_N[-1] == 0:
        return scaled_N, ()
    for half_N in (odd_N, ~odd_N):
        # Measured on one half at the temperature that fits the other best.
        losses_C = -scores.tempered_CxN[:, ~half_N].mean(axis=1, dtype=np.float64)
        best = int(losses_C.argmin())
        scaled_N[half_N] = -scores.tempered_CxN[best, half_N]
        chosen.append(TEMPERATURES[best])
    return scaled_N, tuple(chosen)


def _by_difficulty(row: Row, nll_N: np.ndarray, difficulty_N: np.ndarray) -> Row:
    """The row with the losses of the easy, the middle and the hard third of the items.

    A broken first model gives no difficulties, and no row has these losses.
    """
    if not np.isfinite(difficulty_N).all():
        return row
    parts = np.array_split(nll_N[np.argsort(difficulty_N, kind="stable")], 3)
    easy, middle, hard = (float(part.mean()) if len(part) else math.nan for part in parts)
    return dataclasses.replace(row, nll_easy=easy, nll_middle=middle, nll_hard=hard)


def flops_per_token(loaded: Loaded, prompt: str) -> int:
    """FLOPs of a generated token, halfway through the tokens that are timed."""
    context = len(generation.prompt_ids(loaded, prompt)) + timing.TOKENS // 2
    return flops.decode(loaded.model, context, loaded.thought)


def _scaled(row: Row, temperature: float, tests: Sequence[Answers], nll_N: np.ndarray) -> Row:
    """The row of the base at a temperature.

    Args:
      tests: its answers to test problems, and their loss by item at temperature 1.
    """
    nll = float(np.mean([answers.nll_RxN(temperature).mean() for answers in tests]))
    scaled = dataclasses.replace(
        _at_temperature(row, temperature, statistics.MAX_TEMPERATURE), nll=nll
    )
    return _by_difficulty(scaled, problems.nll_by_item(tests, temperature), nll_N)


def _at_temperature(row: Row, temperature: float, most: float) -> Row:
    """The row of the temperature-scaled model. If the best temperature is the highest one tried, its
    name shows it as a lower bound."""
    shown = f"{temperature:.2f}" if temperature < 0.99 * most else f"\u2265{most:.0f}"
    return dataclasses.replace(
        row, name=f"{row.name} at temperature {shown}", temperature=temperature
    )
