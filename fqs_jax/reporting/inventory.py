"""The contents of a working directory: its stages, what each was made from, checkpoints and exports.

Only names, sizes and small JSON files are read; `reporting/verification.py` reads checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fqs_jax.curriculum import resolve
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import best, folders, metrics_file, record, time_spent
from fqs_jax.runs.time_spent import Spent
from fqs_jax.runtime import buckets, inputs, paths
from fqs_jax.runtime.errors import UserError, printable


class Checkpoint(NamedTuple):
    """A step in a folder of checkpoints.

    Attributes:
      folder: its name in there; in a bucket it is not the step alone.
      damage: empty unless it was found damaged.
    """

    step: int
    folder: str
    bytes: int
    damage: str = ""


@dataclasses.dataclass(frozen=True)
class StageContents:
    """The folder of a stage.

    Attributes:
      name, objective, steps: of its row; steps are those asked for. Empty and 0 if `damage` is not empty.
      step: the newest saved step, 0 without one.
      made_from: where it starts, its teacher, and its text, in words.
      checkpoints: newest first.
      set_aside: folders of checkpoints that were found damaged earlier, and no longer count.
      bytes: size of the whole folder.
      parameters: of the model, as the last start of training counted them; None if it is not known.
      metrics: the last row of its metrics file.
      held_out: the last row on held-out text; empty if it was never measured.
      best: the saved step with the lowest loss there; None without any.
      spent: where its time went; None if that is not known.
      damage: why its record cannot be read.
    """

    number: int
    name: str = ""
    objective: str = ""
    step: int = 0
    steps: int = 0
    made_from: tuple[str, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    set_aside: tuple[str, ...] = ()
    bytes: int = 0
    parameters: int | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    held_out: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: int | None = None
    spent: Spent | None = None
    damage: str = ""


@dataclasses.dataclass(frozen=True)
class Contents:
    """A working directory.

    Attributes:
      initial_model: where the weights of the initial model come from.
      exports: names of the Hugging Face folders in it.
      bytes: size of everything in it.
      damage: why W/source cannot be read.
    """

    root: Path
    initial_model: str
    stages: tuple[StageContents, ...]
    exports: tuple[str, ...]
    bytes: int
    damage: str = ""

    def damages(self) -> Iterator[str]:
        """A line about everything in it that is damaged."""
        if self.damage:
            yield self.damage
        for stage in self.stages:
            if stage.damage:
                yield stage.damage
            folder = folders.checkpoint_folder(self.root, stage.number)
            for saved in stage.checkpoints:
                if saved.damage:
                    yield f"{folder / saved.folder} is damaged: {saved.damage}"


def read(root: Path) -> Contents:
    """The contents of a working directory, without opening checkpoints.

    Raises:
      UserError: the folder does not exist, may not be read, or is no working directory.
    """
    if paths.is_bucket(root):
        buckets.check_readable(root)  # what may not be read seems not to exist
    if not root.is_dir():
        raise UserError(
            f"there is no folder {inputs.name(root)}; give the --workdir of a training run"
        )
    paths.check_workdir(root)
    source, numbers = folders.source_folder(root), folders.stage_numbers(root)
    if not source.is_dir() and not numbers:
        raise UserError(
            f"{inputs.name(root)} is no working directory: it has neither source nor stage_N; give the "
            "--workdir of a training run"
        )
    initial_model, damage = "unknown", ""
    try:
        initial_model = _initial_model(source)
    except UserError as error:
        damage = str(error)
    sizes = _sizes(root)
    stages = tuple(_read_stage(root, number, initial_model, sizes) for number in numbers)
    exports = sorted(path.parent.name for path in root.glob("*/config.json"))
    others = tuple(name for name in exports if name != source.name)
    return Contents(root, initial_model, stages, others, sum(sizes.values()), damage)


def _sizes(root: Path) -> dict[str, int]:
    """The bytes of every file in a folder and its folders, by its name relative to it.

    A bucket is listed once. Links, and what vanishes meanwhile, count nothing.
    """
    if paths.is_bucket(root):
        return {name: int(found["size"]) for name, found in buckets.objects(root).items()}
    sizes = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):  # a run that trains in it deletes old steps
                sizes[path.relative_to(root).as_posix()] = path.lstat().st_size
    return sizes


def _bytes(sizes: Mapping[str, int], *folder: str) -> int:
    """The bytes in a folder, given the names of the folders down to it."""
    start = "/".join((*folder, ""))
    return sum(size for name, size in sizes.items() if name.startswith(start))


def _initial_model(source: Path) -> str:
    """The origin of the initial model's weights, in words."""
    origin = inputs.read_json(source / "origin.json")
    if init_from := origin.get("init_from"):
        return printable(str(init_from), 300)
    return f"random weights of seed {origin.get('seed')}"


def _read_stage(
    root: Path, number: int, initial_model: str, sizes: Mapping[str, int]
) -> StageContents:
    folder, saved = folders.stage_folder(root, number), folders.checkpoint_folder(root, number)
    checkpoints = tuple(
        Checkpoint(step, path.name, _bytes(sizes, folder.name, saved.name, path.name))
        for step, path in folders.checkpoints(saved).items()
    )
    found = StageContents(
        number,
        step=checkpoints[0].step if checkpoints else 0,
        checkpoints=checkpoints,
        set_aside=tuple(folders.set_aside(saved)),
        bytes=_bytes(sizes, folder.name),
    )
    if not checkpoints and not (folder / "run.json").exists():
        return found  # a run that has just begun, or stopped before it saved anything
    try:
        stage, config = folders.read_run(root, number)
        lines = metrics_file.read_lines(folder / "metrics.jsonl")
        starts = metrics_file.events_of(lines, "start")
        rows = metrics_file.steps_of(lines)
        made_from = tuple(_made_from(root, stage, initial_model))
        text = f"on {resolve.sections(config, stage).data.text or config.data.source}"
    except (UserError, AttributeError) as error:
        return dataclasses.replace(found, damage=str(error))
    return dataclasses.replace(
        found,
        name=stage.name,
        objective=stage.objective,
        steps=stage.steps,
        made_from=(*made_from, printable(text, 300)),
        parameters=starts[-1].get("parameters") if starts else None,
        metrics=rows[-1] if rows else {},
        held_out=dict(next(reversed(best.rows(lines)), {})),
        best=best.step(lines, [one.step for one in checkpoints]),
        spent=time_spent.of(lines),
    )


def _made_from(root: Path, stage: Stage, initial_model: str) -> Iterator[str]:
    """The start of a stage, and its teacher, with the steps that it got of them."""
    made_from = folders.read_record(folders.stage_folder(root, stage.number) / "run.json")[
        "made_from"
    ]
    if stage.start is None:
        yield f"the initial model, {initial_model}"
    for role, number in (("from", stage.start), ("taught by", stage.teacher)):
        if number is None:
            continue
        origin = made_from.get(str(number))
        origin = origin if isinstance(origin, dict) else {}
        changed = "" if record.is_current(root, number, origin) else ", which has changed since"
        if not folders.stage_folder(root, number).is_dir():
            changed = ", which is gone"
        yield f"{role} stage {number} at step {origin.get('step')}{changed}"


def with_damage(contents: Contents, damage: Mapping[Path, str]) -> Contents:
    """The contents with the damage of checkpoints, by their folder; those without an entry are whole."""

    def marked(stage: StageContents) -> StageContents:
        folder = folders.checkpoint_folder(contents.root, stage.number)
        saved = (
            one._replace(damage=damage.get(folder / one.folder, "")) for one in stage.checkpoints
        )
        return dataclasses.replace(stage, checkpoints=tuple(saved))

    return dataclasses.replace(contents, stages=tuple(map(marked, contents.stages)))
