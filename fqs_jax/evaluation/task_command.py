"""The task command of `python -m fqs_jax.evaluate`, for benchmarks: `--task=csqa --task_file=FILE`."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from jax.sharding import Mesh
from rich.table import Table

from fqs_jax.data.sources import options as options_lib
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import open_sources
from fqs_jax.evaluation import chains_file, command_flags, contamination, statistics
from fqs_jax.evaluation.statistics import Interval
from fqs_jax.evaluation.tasks import (
    asking,
    chain_of_thought,
    chats,
    items,
    known,
    option_scores,
    option_texts,
    scores,
    social_iqa,
)
from fqs_jax.evaluation.tasks.asking import Answers
from fqs_jax.evaluation.tasks.decisions import Decisions
from fqs_jax.evaluation.tasks.items import Cloze, Item, Task
from fqs_jax.evaluation.tasks.option_texts import Likelihoods
from fqs_jax.inference import chat
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runs import loading
from fqs_jax.runtime import cli, paths, screen
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.notes import note
from fqs_jax.runtime.progress import Progress


def main() -> int:
    """Evaluate one model or all stages on the task that the flags name.

    Returns:
      The exit code, 0.
    """
    f = flags.FLAGS
    cli.require(task_file=f.task_file)
    _refuse_mistakes()
    options = options_lib.of_program(f.download)
    if f.scoring == "text":
        cloze = items.read(known.TEXTS[f.task], f.task_file, f.labels_file, f.limit, options)
        _note_shared(cloze, options)
        _print(_score_texts(cloze), _TEXT_SCORES)
        return 0
    asked = items.read(_task(f.task), f.task_file, f.labels_file, f.limit, options)
    _note_shared(asked, options)
    if f.votes:
        votes = [_chains(*model, asked) for model in _models(cli.mesh_from_flags())]
        _print(votes, _votes(f.votes))
        return 0
    fit: list[Item] = []
    if f.fit_file:
        fit = items.read(
            _task(f.task), f.fit_file, f.fit_labels_file, command_flags.FIT_ITEMS, options
        )
        _refuse_leak(asked, fit)
    found: list[scores.Row] = []
    base: Answers | None = None  # the first model's answers; gains are measured against them
    for stage, name, loaded in _models(cli.mesh_from_flags()):
        rows, base = _rows(stage, name, loaded, asked, fit, base)
        found += rows
    _print(found, _SCORES)
    return 0


def _refuse_mistakes() -> None:
    """Refuse flags of this command that do not go together, before anything is read."""
    f = flags.FLAGS
    if f.scoring == "text":
        _refuse_mistakes_with_texts()
    if f.votes and f.task != "gsm8k":
        raise UserError("--votes is for --task=gsm8k; leave it out")
    if f.chains_file:
        if not f.votes:
            raise UserError("--chains_file is for --votes; add --votes=8 or leave it out")
        chains_file.prepare(Path(f.chains_file))  # fails now rather than after hours
    if f.chat and f.task == "gsm8k" and not f.votes:
        raise UserError("--chat is for choices and for --votes; add --votes=8, or leave it out")
    if f.votes and f.fit_file:
        raise UserError("--fit_file is not for --votes, which fit no temperature; leave it out")
    if f.fit_labels_file and not f.fit_file:
        raise UserError("--fit_labels_file is for --fit_file; add that or leave it out")
    if f.votes and f.greedy:
        raise UserError("--greedy is not for --votes, whose thoughts are sampled; leave it out")
    if f.votes and f.thought_seeds:
        raise UserError("--thought_seeds is not for --votes, which sample chains; leave it out")
    if f.greedy and (f.thought_seeds or 1) > 1:
        raise UserError("--greedy has one thought, and --thought_seeds more; leave one out")
    if f.siqa_space and f.task != "siqa":
        raise UserError("--siqa_space is for --task=siqa; leave it out")
    of_chains = ("temperature", "top_p", "max_new_tokens", "cot_prompt")
    unused = [name for name in of_chains if f[name].value != f[name].default and not f.votes]
    if unused:
        raise UserError(f"--{unused[0]} is for --votes; add --votes=8 or leave it out")


def _refuse_mistakes_with_texts() -> None:
    f = flags.FLAGS
    if f.task not in known.TEXTS:
        raise UserError(
            f"--scoring=text is for --task={'|'.join(known.TEXTS)}; {f.task} has no options, leave it out"
        )
    if f.fit_file:
        raise UserError(
            "--fit_file is not for --scoring=text, which fits no temperature; leave it out"
        )
    if f.siqa_space:
        raise UserError("--siqa_space is for --scoring=letters; texts have the space, leave it out")


def _refuse_leak(asked: Sequence[Item], fit: Sequence[Item]) -> None:
    """Refuse to fit temperatures on items that are scored too, under any file name."""
    if both := len(set(asked) & set(fit)):
        raise UserError(
            f"{both} of the first {len(fit)} items of --fit_file are in --task_file too; give other "
            "items, or leave it out"
        )


def _note_shared(asked: Sequence[Item] | Sequence[Cloze], options: Options) -> None:
    """With --text, note how many items it holds: a model that was trained on it may know them by heart."""
    text = flags.FLAGS.text
    if not text:
        return
    sources = [source for source, _ in open_sources(text, options)]
    documents = (source[i] for source in sources for i in range(len(source)))
    found = contamination.shared([contamination.question(item.prompt) for item in asked], documents)
    note(contamination.sentence(found, len(asked), text))


def _task(name: str) -> Task[Item]:
    join = " " if flags.FLAGS.siqa_space else social_iqa.PUBLISHED_JOIN
    return known.published(name, join)


def _models(mesh: Mesh) -> Iterator[tuple[str, str, Loaded]]:
    f = flags.FLAGS
    if f.all_stages:
        root = f.workdir or f.checkpoint
        cli.require(workdir=root)
        for stage, name, _, loaded in loading.models(paths.expand(root), mesh=mesh):
            yield stage, name, loaded
        return
    cli.require(checkpoint=f.checkpoint)
    loaded = loading.load(f.checkpoint, f.stage, mesh=mesh)
    yield f.stage or "-", loaded.label, loaded


def _rows(
    stage: str,
    name: str,
    loaded: Loaded,
    asked: Sequence[Item],
    fit: Sequence[Item],
    base: Answers | None,
) -> tuple[list[scores.Row], Answers]:
    """A row without thoughts, one with thoughts if the model thinks, and the answers of the base."""
    settings = _settings()
    if flags.FLAGS.chat:
        loaded, template = chat.for_chat(loaded)
        asked, fit = chats.items(template, asked), chats.items(template, fit)
    with Progress(f"{name}: rows", 0, 0) as bar:
        result = asking.evaluate(loaded, asked, settings, bar.advance_to)
    elsewhere: list[Decisions | None] = [None, None]
    if fit:
        with Progress(f"{name}: rows for temperatures", 0, 0) as bar:
            other = asking.evaluate(loaded, fit, settings, bar.advance_to)
        elsewhere = [part.published if part else None for part in (other.plain, other.thinking)]
    about = _about(stage, name, result.too_long)
    rows = [scores.row(result.plain, elsewhere[0], base, thoughts="none", **about)]
    base = base or result.plain
    if result.thinking is not None:
        thoughts = _thoughts(settings)
        rows.append(scores.row(result.thinking, elsewhere[1], base, thoughts=thoughts, **about))
    return rows, base


def _score_texts(asked: Sequence[Cloze]) -> list[option_scores.Row]:
    """The rows of all models by the texts of the options: as by `_rows`, without temperatures."""
    settings = _settings()
    rows: list[option_scores.Row] = []
    base: Likelihoods | None = None
    for stage, name, loaded in _models(cli.mesh_from_flags()):
        put = asked
        if flags.FLAGS.chat:
            loaded, template = chat.for_chat(loaded)
            put = chats.clozes(template, asked)
        with Progress(f"{name}: rows", 0, 0) as bar:
            result = option_texts.evaluate(loaded, put, settings, bar.advance_to)
        about = _about(stage, name, result.too_long)
        rows.append(option_scores.row(result.plain, base, thoughts="none", **about))
        base = base or result.plain
        if result.thinking is not None:
            thoughts = _thoughts(settings)
            rows.append(option_scores.row(result.thinking, base, thoughts=thoughts, **about))
    return rows


def _settings() -> asking.Settings:
    f = flags.FLAGS
    return asking.Settings(
        thought_seeds=f.thought_seeds or asking.Settings.thought_seeds,
        greedy=f.greedy,
        seed=f.seed,
        batch_size=f.batch_size or asking.Settings.batch_size,
        seq_len=f.seq_len,
    )


def _about(stage: str, name: str, too_long: int) -> dict[str, Any]:
    """The fields that are copied into a row."""
    return {"stage": stage, "model": name, "task": flags.FLAGS.task, "too_long": too_long}


def _thoughts(settings: asking.Settings) -> str:
    return "greedy" if settings.greedy else str(settings.thought_seeds)


def _chains(stage: str, name: str, loaded: Loaded, asked: Sequence[Item]) -> chain_of_thought.Row:
    f = flags.FLAGS
    settings = chain_of_thought.Settings(
        votes=f.votes,
        temperature=f.temperature,
        top_p=f.top_p,
        max_new_tokens=f.max_new_tokens,
        prompt=f.cot_prompt or chain_of_thought.PROMPT,
        seed=f.seed,
        seq_len=f.seq_len,
        batch_size=f.batch_size or chain_of_thought.Settings.batch_size,
    )
    write: Callable[[str], str] = str
    if f.chat:
        loaded, template = chat.for_chat(loaded)
        write = functools.partial(chats.write, template)
    with Progress(f"{name}: questions", 0, 0) as bar:
        chains = chain_of_thought.sample(loaded, asked, settings, bar.advance_to, write)
    if f.chains_file:
        lines = (
            {"model": name, "stage": stage, "item": n, **chain._asdict()}
            for n in sorted(chains)
            for chain in chains[n]
        )
        chains_file.append(Path(f.chains_file), lines)
    return chain_of_thought.count(asked, chains, stage=stage, model=name, task=f.task)


def _print(rows: Sequence[Any], columns: Columns) -> None:
    """Print rows as JSON lines or as a table: stage and model, then each column's cells."""
    if flags.FLAGS.json:
        for row in rows:
            screen.print_json(statistics.flat_fields(row))
        return
    left_out = f", {rows[0].too_long} left out: too long" if rows[0].too_long else ""
    table = Table(title=f"{rows[0].task}: {rows[0].items:,} items{left_out}")
    table.add_column("stage", justify="right")
    table.add_column("model")
    for title in columns:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row.stage, row.model, *(cell(row) for cell in columns.values()))
    screen.show(table, None if sys.stdout.isatty() else 140)


def _with_temperature(value: float, temperatures: Sequence[float]) -> str:
    """A score and its temperature, which is the geometric mean over two halves."""
    if math.isnan(value):
        return "-"  # a single item has no two halves
    return f"{value:.4f} @ {math.prod(temperatures) ** (1 / max(1, len(temperatures))):.2f}"


def _share(share: Interval) -> str:
    return f"{share.value:.3f} ({share.low:.3f}-{share.high:.3f})"


def _change(change: Interval) -> str:
    return "-" if math.isnan(change.value) else "{:+.3f} ({:+.3f} {:+.3f})".format(*change)


def _share_and_gain(share: Interval, gain: Interval) -> str:
    """A share, and on a second line its gain over the first row."""
    return _share(share) if math.isnan(gain.value) else f"{_share(share)}\n{_change(gain)}"


Columns = dict[str, Callable[[Any], str]]  # each column's title, and its cell in a row
_SCORES: Columns = {
    "thoughts": lambda row: row.thoughts,
    "expected p": lambda row: f"{row.expected_prob:.4f}",
    "calibrated": lambda row: _with_temperature(row.calibrated, row.calibrated_at),
    "sharpened": lambda row: _with_temperature(row.sharpened, row.sharpened_at),
    "accuracy (95%)": lambda row: _share(row.accuracy),
    "gain (95%)": lambda row: _change(row.gain),
    "NLL": lambda row: f"{row.nll:.3f}",
}

_TEXT_SCORES: Columns = {
    "thoughts": lambda row: row.thoughts,
    "accuracy (95%)": lambda row: _share_and_gain(row.accuracy, row.gain),
    "by characters": lambda row: _share_and_gain(
        row.accuracy_by_characters, row.gain_by_characters
    ),
    "by tokens": lambda row: _share_and_gain(row.accuracy_by_tokens, row.gain_by_tokens),
    "NLL": lambda row: f"{row.nll:.3f}",
}


def _votes(count: int) -> Columns:
    """Columns of a vote among so many chains."""
    return {
        f"maj@{count} (95%)": lambda row: _share(row.majority),
        "single": lambda row: f"{row.single:.3f}",
        f"maj@{count} published": lambda row: f"{row.majority_published:.3f}",
        "single published": lambda row: f"{row.single_published:.3f}",
        "no number": lambda row: f"{row.no_number:.3f}",
        "cut off": lambda row: f"{row.cut_off:.3f}",
    }
