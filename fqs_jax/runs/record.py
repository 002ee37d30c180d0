"""run.json beside the checkpoints of a stage: the record of everything that the stage is made from.

A record holds the stage's row, the config, a digest of the data, and for each stage that it starts from
or is taught by that stage's step and a hash of its record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from fqs_jax.curriculum.objective import OBJECTIVES
from fqs_jax.curriculum.stage import Stage
from fqs_jax.runs import older_records
from fqs_jax.runs.folders import (
    REPAIR,
    checkpoint_folder,
    existing_stages,
    latest_step,
    read_record,
    saved_step,
    stage_folder,
)
from fqs_jax.runtime import agreement, files
from fqs_jax.runtime.errors import UserError

# Sections, and fields in any section of the config, that may change between two starts of a stage.
_HARMLESS_SECTIONS = ("config.mesh.", "config.held_out.")
HARMLESS = (
    "steps",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "max_bad_steps",
    # These change the way a step is computed, and its result only by rounding.
    "microbatches",
    "remat",
    "vocab_chunk",
    "position_chunk",
    "attention",
    "workers",
    "cache_dir",
    "tfds_dir",
    "download",
)


def write(
    root: Path,
    config: ml_collections.ConfigDict,
    stage: Stage,
    data_digest: str = "",
    adapted: bool = False,
) -> None:
    """Write the record of a stage; on a later start, compare with it first.

    All processes must call this; process 0 writes.

    Args:
      data_digest: a hash of the training rows.
      adapted: the stage trains adapters.

    Raises:
      UserError: the stage was begun from something else, or the processes have different records.
    """
    folder = stage_folder(root, stage.number)
    path = folder / "run.json"
    step = saved_step(root, stage.number)
    parents = {str(n): origin_of(root, n) for n in (stage.start, stage.teacher) if n is not None}
    run = _row_and_config(config, stage, adapted) | {"data": data_digest, "made_from": parents}
    agreement.check_same(json.dumps(run, sort_keys=True), "flags or other text")

    def compare_and_record() -> None:
        if step is not None and path.exists():
            _check_parents(root, stage, parents)
            _compare(root, config, stage, step, run)
        # A finished stage stays as it was recorded. One that was to be longer ends where it is.
        if step is not None and path.exists() and step >= stage.steps:
            if _read(folder)["stage"]["steps"] > step:
                files.write_json(path, run | {"stage": run["stage"] | {"steps": step}})
            return
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(path, run)

    agreement.on_main(compare_and_record)


def check(
    root: Path, config: ml_collections.ConfigDict, stage: Stage, adapted: bool = False
) -> None:
    """Compare a stage that was begun with its row and config of now; nothing is written.

    Raises:
      UserError: it was begun with something else.
    """
    folder = stage_folder(root, stage.number)
    step = latest_step(checkpoint_folder(root, stage.number))
    if step is None or not (folder / "run.json").exists():
        return
    _compare(root, config, stage, step, _read(folder) | _row_and_config(config, stage, adapted))


def _check_parents(root: Path, stage: Stage, parents: dict[str, dict[str, Any]]) -> None:
    """Refuse to resume a stage if one that it was made from is gone.

    Raises:
      UserError: one is.
    """
    made_from = _read(stage_folder(root, stage.number))["made_from"]
    for number, now in parents.items():
        if now["step"] is None and made_from.get(number):
            raise UserError(
                f"stage {number}, which {stage} was made from, is gone: restore "
                f"{stage_folder(root, int(number))}, or use another --workdir"
            )


def _compare(
    root: Path, config: ml_collections.ConfigDict, stage: Stage, step: int, run: dict[str, Any]
) -> None:
    """Refuse to resume a stage that was begun from something else, or that other stages need as it is.

    Args:
      step: its newest saved step.
      run: its record as of now.

    Raises:
      UserError: it is refused.
    """
    folder = stage_folder(root, stage.number)
    before = older_records.completed(_read(folder))
    # If the learning rate decays to the last step, the number of steps changes every step's rate.
    unfinished = step < max(stage.steps, before["stage"]["steps"])
    decays = config.optimizer.decay_steps == 0 and unfinished
    ignored = tuple(name for name in HARMLESS if name != "steps" or not decays)
    if changed := change(before, older_records.completed(run), ignored):
        if changed.startswith("data="):  # two hashes, which nobody can read
            changed = "other training rows: the text itself, or its tokens, changed"
        if changed.startswith("stage.steps=") and decays:
            changed += (
                " (--max_steps counts), and its learning rate falls to 0 at the last of them: "
                "optimizer.decay_steps is 0"
            )
        raise UserError(
            f"{folder} was begun with {changed}; use another --workdir, or remove {folder} to "
            "begin the stage again"
        )
    if step < stage.steps and (child := _made_from(root, stage.number, step)):
        raise UserError(
            f"{stage} would resume at step {step} and train to {stage.steps}, but stage {child} was made "
            f"from step {step}; use another --workdir, or remove {stage_folder(root, child)} first"
        )


def _made_from(root: Path, number: int, step: int) -> int | None:
    """The number of a stage that was made from this step of a stage; None if there is none."""
    for child in existing_stages(root):
        origin = _read(stage_folder(root, child.number))["made_from"].get(str(number))
        if isinstance(origin, dict) and origin.get("step") == step:
            return child.number
    return None


def _read(folder: Path) -> dict[str, Any]:
    """The record in the folder of a stage, as it was written: its hash stands in records of later stages.

    Raises:
      UserError: it cannot be read, or lacks a part.
    """
    path = folder / "run.json"
    try:
        return read_record(path)
    except UserError as error:
        raise UserError(f"{path} is no record of a stage: {error}; {REPAIR}") from error


def origin_of(root: Path, number: int) -> dict[str, Any]:
    """The newest step of a stage and a hash of its record: an entry of `made_from` in other records.

    All processes must call this.
    """
    return {"step": saved_step(root, number), "lineage": _lineage(root, number)}


def is_current(root: Path, number: int, origin: dict[str, Any]) -> bool:
    """True if a stage is still as an entry of `made_from` in another record has it."""
    step = latest_step(checkpoint_folder(root, number))
    return origin == {"step": step, "lineage": _lineage(root, number)}


def _lineage(root: Path, number: int) -> str | None:
    """The hash of a stage's record; None without one."""
    folder = stage_folder(root, number)
    return digest(_read(folder)) if (folder / "run.json").exists() else None


def _row_and_config(
    config: ml_collections.ConfigDict, stage: Stage, adapted: bool
) -> dict[str, Any]:
    """The two parts of a record that follow from the command alone, as JSON returns them."""
    parts = {"stage": dataclasses.asdict(stage), "config": _relevant(config, stage, adapted)}
    read_back: dict[str, Any] = json.loads(json.dumps(parts))
    return read_back


def _relevant(config: ml_collections.ConfigDict, stage: Stage, adapted: bool) -> dict[str, Any]:
    """The config without the rows of all stages; the stage's own row is saved beside it.

    Sections such as `distill` are left out of the records of other stages, so that several students can
    be trained from the same teacher; so is `lora` for a stage without adapters.
    """
    private = {name for name, row in OBJECTIVES.items() if not row.in_other_records}
    if not adapted:
        private.add("lora")
    return {
        key: value
        for key, value in config.to_dict().items()
        if not key.startswith("stage_") and (key not in private or key == stage.objective)
    }


def _is_harmless(key: str, fields: tuple[str, ...] = HARMLESS) -> bool:
    """True if the field with this dotted path may change."""
    return key.rsplit(".", 1)[-1] in fields or key.startswith(_HARMLESS_SECTIONS)


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record by dotted path; of a row's settings, those that may not change."""
    fields: dict[str, Any] = flatten_dict(run, sep=".")
    if settings := fields.get("stage.settings"):
        fields["stage.settings"] = [each for each in settings if not each.startswith("held_out.")]
    return fields


def digest(run: dict[str, Any]) -> str:
    """A hash of a record, without the fields that may change: 16 hexadecimal digits."""
    fixed = {key: value for key, value in _flat(run).items() if not _is_harmless(key)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def change(before: dict[str, Any], now: dict[str, Any], ignored: tuple[str, ...] = ()) -> str:
    """The first field that differs between two records, with both values; empty if none does.

    Args:
      ignored: names of fields that may differ, besides those of the mesh.
    """
    flat_before, flat_now = _flat(before), _flat(now)
    for key in flat_now | flat_before:
        old, new = flat_before.get(key), flat_now.get(key)
        if old != new and not _is_harmless(key, ignored):
            return f"{key}={old!r}, now it is {new!r}"
    return ""
