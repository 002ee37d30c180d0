"""Parquet and Arrow files are read in a child process first, because a broken one can crash Arrow.

A file that has passed is not checked again in this process. For large files the result is kept on
disk, under the file's path, size, inode and time of change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fqs_jax.data.sources import table_child, text_files
from fqs_jax.runtime import files, inputs
from fqs_jax.runtime.child_process import ChildProcess, Ended
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.progress import Progress

LARGE = 1 << 24  # bytes; the result for a larger file is cached on disk
SLOW = 1 << 28  # bytes of all files that take so long that progress is shown
Stamp = tuple[int, int, int]  # size, time of change and inode of a file

_passed: dict[tuple[str, Path, str | None, Stamp], Checked] = {}


@dataclasses.dataclass(frozen=True)
class Checked:
    """A file whose every value can be read.

    Attributes:
      stamp: the file's state when it was checked.
      batch: rows that may be read at once.
      groups: rows and bytes of text of each group of rows.
    """

    stamp: Stamp
    batch: int
    groups: tuple[tuple[int, int], ...]


def check(kind: str, paths: Sequence[Path], key: str | None, cache: Path) -> list[Checked]:
    """The content of files, all values of which were read by a child process.

    Args:
      kind: "parquet" or "arrow".
      key: the column with the text; None = all columns, which need not hold text.
      cache: folder for the results of large files.

    Raises:
      UserError: a file is broken or too large, or has no column of strings by that name.
    """
    found: list[Checked] = []
    total = sum(text_files.check_file(path).st_size for path in paths)
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(Child())
        bar = stack.enter_context(Progress("checking tables (MB)", 0, total >> 20))
        for path in paths:
            found.append(_check(child, kind, path, key, cache))
            if total > SLOW:
                bar.advance_to(sum(one.stamp[0] for one in found) >> 20)
    return found


def stamp_of(path: Path) -> Stamp:
    """The state of a file, which changes with its content."""
    state = text_files.check_file(path)
    return state.st_size, state.st_mtime_ns, state.st_ino


def _check(child: Child, kind: str, path: Path, key: str | None, cache: Path) -> Checked:
    stamp = stamp_of(path)
    known = (kind, path, key, stamp)
    if known in _passed:
        return _passed[known]
    name = repr((kind, str(path.resolve()), key, stamp))
    kept = cache / "tables" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
    checked = _kept(kept, stamp)
    if checked is None:
        checked = _passed_check(path, key, stamp, child.ask(kind, path, key, stamp[0]))
        if stamp[0] > LARGE:
            _keep(kept, checked)
    _passed[known] = checked
    return checked


def _passed_check(
    path: Path, key: str | None, stamp: Stamp, found: table_child.Found | None
) -> Checked:
    shown, column = inputs.name(path), repr(key)
    if found is None:
        raise text_files.damaged(path, "reading it crashes Arrow")
    if "missing" in found:
        seen = printable(", ".join(map(repr, found["missing"])) or "none", 400)
        raise UserError(f"{shown}: no column {column}; name the one with the text (seen: {seen})")
    if "type" in found:
        holds = printable(found["type"], 200)
        raise UserError(f"{shown}: column {column} holds {holds}; it must hold strings")
    if "refused" in found:
        raise UserError(f"{shown}: {found['refused']}")
    if "problem" in found:
        raise text_files.damaged(path, found["problem"])
    groups = tuple((int(rows), int(size)) for rows, size in found["groups"])
    return Checked(stamp, int(found["batch"]), groups)


class Child:
    """The process that reads files; started at the first question, and again after a crash."""

    def __init__(self) -> None:
        self._process = ChildProcess(
            lambda: table_child.__file__, {"ARROW_DEFAULT_MEMORY_POOL": "system"}
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def ask(self, kind: str, path: Path, key: str | None, size: int) -> Any:
        """The child's answer; None if it crashed.

        Raises:
          UserError: the process cannot be started.
        """
        try:
            return self._process.ask([kind, os.fspath(path), key, text_files.most_unpacked(size)])
        except Ended:
            return None


def _kept(path: Path, stamp: Stamp) -> Checked | None:
    """An earlier result; None if there is none, or it is broken."""
    with contextlib.suppress(UserError, TypeError, ValueError, KeyError):
        values = inputs.read_json(path)
        groups = tuple((int(rows), int(size)) for rows, size in values["groups"])
        if values["stamp"] == list(stamp) and values["batch"] >= 0:
            return Checked(stamp, int(values["batch"]), groups)
    return None


def _keep(path: Path, checked: Checked) -> None:
    content = json.dumps(dataclasses.asdict(checked)).encode()
    # If it cannot be kept, the file is checked again at the next start.
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, lambda file: file.write(content), many_writers=True)
