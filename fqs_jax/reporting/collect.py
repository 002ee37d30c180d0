"""The content of a report about a working directory; `reporting/page.py` makes a page of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

import fqs_jax
from fqs_jax.curriculum import objective, resolve
from fqs_jax.curriculum.stage import Stage
from fqs_jax.data import corpus
from fqs_jax.evaluation import comparison, comparison_file
from fqs_jax.evaluation.comparison_file import Kept
from fqs_jax.reporting import diagnosis
from fqs_jax.reporting.diagnosis import Diagnostics, Token
from fqs_jax.runs import best, folders, history, loading, metrics_file, time_spent
from fqs_jax.runs import source as source_lib
from fqs_jax.runs.time_spent import Spent
from fqs_jax.runtime import cli
from fqs_jax.runtime.errors import UserError

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
SOME_DOCUMENTS, SOME_CHARACTERS = 8, 2000  # shown of the training text if no other text is given


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a report.

    Attributes:
      text: name of the held-out documents, for the printed commands; "" = the run's own.
      documents: held-out documents; empty = held-out items of the built-in task, or training text.
      stage: thinking stage whose thoughts are shown, perhaps with `best.SUFFIX`; None = the last one.
      tokens: approximate number of tokens of text that are shown.
      max_tokens: tokens of one document at most.
      samples: thoughts sampled at every token.
      seed: seed of the thoughts.
    """

    text: str = ""
    documents: tuple[str, ...] = ()
    stage: str | None = None
    tokens: int = 600
    max_tokens: int = 512
    samples: int = 4
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Training:
    """A stage and its training.

    Attributes:
      step: step of the newest checkpoint.
      rows: rows of the metrics file without nesting, all values floats.
      start: the last "start" event of the metrics file.
      spent: where its time went; None if that is not known.
      held_out: likewise the losses on held-out text, as held_out/FIELD.
      best: the saved step with the lowest of them; None without any.
    """

    stage: Stage
    step: int
    rows: tuple[dict[str, float], ...]
    start: dict[str, Any]
    spent: Spent | None = None
    held_out: tuple[dict[str, float], ...] = ()
    best: int | None = None


class Documents(NamedTuple):
    """Text to read; `source` describes it, `held_out` is False for training text."""

    texts: list[str]
    source: str
    held_out: bool


@dataclasses.dataclass(frozen=True)
class Reading:
    """Text with the thoughts before each token; `source` and `held_out` are those of `Documents`."""

    stage: str
    source: str
    held_out: bool
    documents: list[list[Token]]
    diagnostics: Diagnostics


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
      name: name of the working directory.
      origin: the initial model.
      models: the comparison of all models, with the flags that made it.
      reading: text with thoughts; None if no stage thinks.
      config, versions: values by name.
      commands: command lines that reproduce the run and this page.
    """

    name: str
    origin: str
    training: list[Training]
    models: Kept
    reading: Reading | None
    config: dict[str, str]
    versions: dict[str, str]
    commands: list[str]


def collect(
    root: Path,
    settings: Settings,
    note: Callable[[str], None] = lambda _: None,
    mesh: Mesh | None = None,
) -> Report:
    """Read and measure the content of a report.

    Args:
      root: the working directory.
      note: called with a line about each slow part before it starts.
      mesh: devices for the models; None = one device.

    Raises:
      UserError: the folder does not exist or has no finished stage.
    """
    training = read_training(root)
    last = training[-1].stage
    _, config = folders.read_run(root, last.number)
    shown = _shown_stage(root, training, settings)
    documents = _documents(root, config, settings, shown or last)
    on_text = config.data.source == "text"
    models = _compared(root, settings, documents, on_text, note, mesh)
    return Report(
        name=root.resolve().name,
        origin=source_lib.origin_name(root).strip("`"),
        training=training,
        models=models,
        reading=_reading(root, shown, settings, documents, note, mesh) if shown else None,
        config={
            key: str(value)
            for key, value in sorted(flatten_dict(config.to_dict(), sep=".").items())
        },
        versions=versions(),
        commands=_commands(root, settings, models.flags),
    )


def read_thoughts(
    root: Path,
    settings: Settings,
    note: Callable[[str], None] = lambda _: None,
    mesh: Mesh | None = None,
) -> Reading:
    """Text with the thoughts before each token, and nothing else of a report; see `collect`.

    Raises:
      UserError: the folder has no finished stage, or none that thinks.
    """
    training = read_training(root)
    _, config = folders.read_run(root, training[-1].stage.number)
    shown = _shown_stage(root, training, settings)
    if shown is None:
        raise UserError(f"no stage of {root} thinks; train one with the objective quiet_star")
    documents = _documents(root, config, settings, shown)
    return _reading(root, shown, settings, documents, note, mesh)


def read_training(root: Path) -> list[Training]:
    """The stages of a working directory that have a checkpoint.

    Raises:
      UserError: the folder is no working directory, or none of its stages is finished.
    """
    is_run = folders.is_workdir(root)
    if not is_run and not root.is_dir():
        raise UserError(f"there is no folder {root}; give the --workdir of a training run")
    if not is_run:
        raise UserError(f"{root} is no working directory; give the --workdir of a training run")
    found = []
    for stage in folders.existing_stages(root):
        lines = metrics_file.read_lines(folders.stage_folder(root, stage.number) / "metrics.jsonl")
        every = tuple(map(_numbers, metrics_file.steps_of(lines)))
        starts = metrics_file.events_of(lines, "start")
        step = folders.saved_step(root, stage.number) or 0
        start = starts[-1] if starts else {}
        measured = tuple(map(_measured, best.rows(lines)))
        saved = folders.saved_steps(folders.checkpoint_folder(root, stage.number))
        kept = best.step(lines, saved)
        found.append(Training(stage, step, every, start, time_spent.of(lines), measured, kept))
    if not any(training.step >= training.stage.steps for training in found):
        raise UserError(
            f"{root} has no finished stage; train one with {cli.command_line('fqs_jax.launch', workdir=root)}"
        )
    return found


def versions() -> dict[str, str]:
    """Versions of this program, its libraries and the system, by name."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    device = jax.devices()[0]
    return {
        "fqs_jax": fqs_jax.__version__,
        "Python": platform.python_version(),
        **libraries,
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
    }


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a metrics row as floats without nesting; NaN where the file has none."""
    found = {}
    for key, value in flatten_dict(row, sep=".").items():
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            # Older files have "nan" and "inf" in quotes.
            found[key.removeprefix("time.")] = math.nan if value is None else float(value)
    return found


def _measured(row: Mapping[str, Any]) -> dict[str, float]:
    """The step of a row on held-out text, and its losses."""
    return {"step": float(row["step"])} | _numbers(best.losses(row))


def _shown_stage(root: Path, training: Sequence[Training], settings: Settings) -> Stage | None:
    """The stage whose thoughts are shown: the one that is named, or the last that thinks."""
    stages = [entry.stage for entry in training]
    if settings.stage:
        stage, _ = best.find(root, stages, settings.stage)
        if not objective.of(stage).thinks:
            raise UserError(f"{stage} does not think; leave --stage out, or name one that does")
        return stage
    return next((stage for stage in reversed(stages) if objective.of(stage).thinks), None)


def _documents(root: Path, config: Any, settings: Settings, stage: Stage) -> Documents:
    """The text that is given, or held-out problems, or the training text of a stage."""
    data = resolve.sections(config, stage).data
    if settings.documents:
        return Documents(list(settings.documents), settings.text or "held-out text", True)
    if (task := corpus.built_in_task(config.data, config.seed)) is not None:
        texts = [f"{prompt} {answer}" for prompt, answer in task.problems("test")]
        return Documents(texts, comparison_file.PROBLEMS, True)
    try:
        tokenizer = folders.local_source(root)
        source = corpus.sources(data, config.seed, tokenizer, download_flag="")[0][0]
    except (UserError, OSError) as error:
        raise UserError(f"{error}; or give held-out text with --text=FILE") from error
    every = (source[i] for i in range(len(source)))
    some = itertools.islice((text for text in every if text.strip()), SOME_DOCUMENTS)
    return Documents([text[:SOME_CHARACTERS] for text in some], "training text", False)


def _compared(
    root: Path,
    settings: Settings,
    documents: Documents,
    on_text: bool,
    note: Callable[[str], None],
    mesh: Mesh | None,
) -> Kept:
    """The comparison that `evaluate --all_stages` wrote, or a new one, which is written for the next time."""
    saved = comparison_file.read(root)
    wanted = settings.text if on_text else ""  # a run on problems is compared on its own problems
    if saved is not None and (not wanted or saved.flags.get("text") == wanted):
        return saved
    texts, source = (
        (documents.texts, documents.source) if on_text else ([], comparison_file.PROBLEMS)
    )
    rows = comparison.compare(root, None, texts, lambda name: note(f"evaluating {name}"), mesh)
    flags = {"text": wanted} if wanted else {}
    if documents.held_out or not on_text:
        with contextlib.suppress(OSError):  # the next report measures again
            comparison_file.write(root, rows, source, flags)
    return Kept([comparison_file.as_json(row) for row in rows], source, flags)


def _reading(
    root: Path,
    stage: Stage,
    settings: Settings,
    documents: Documents,
    note: Callable[[str], None],
    mesh: Mesh | None,
) -> Reading:
    note(f"reading thoughts of {stage}")
    loaded = loading.load(str(root), settings.stage or str(stage.number), mesh=mesh)
    chosen: list[str] = []
    room = settings.tokens
    limit = min(settings.max_tokens, loaded.model.max_seq_len)
    for document in documents.texts:
        size = len(loaded.tokenizer.encode(document))
        if chosen and size > room:
            break
        chosen.append(document)
        room -= min(size, limit)
    shown, diagnostics = diagnosis.examine(loaded, chosen, settings.samples, limit, settings.seed)
    return Reading(loaded.label, documents.source, documents.held_out, shown, diagnostics)


def _commands(root: Path, settings: Settings, evaluated: dict[str, Any]) -> list[str]:
    """The recorded commands that trained the run, and those for the comparison and this page."""
    text: dict[str, Any] = {"text": settings.text}
    changed = {
        name: getattr(settings, name)
        for name in ("tokens", "max_tokens", "samples", "seed")
        if getattr(settings, name) != getattr(Settings(), name)
    }
    return [
        *history.commands(root),
        cli.command_line("fqs_jax.evaluate", workdir=root, all_stages=True, **evaluated),
        cli.command_line("fqs_jax.report", workdir=root, stage=settings.stage, **text, **changed),
    ]


def is_number(value: Any) -> bool:
    """True for a finite number, which can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
