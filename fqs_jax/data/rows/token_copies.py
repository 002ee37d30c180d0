"""A store of tokens that lies in a bucket: its pieces are made and read on this machine, and copied."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fqs_jax.runtime import buckets, files, paths
from fqs_jax.runtime.errors import UserError

_PARTS = ("tokens", "lengths")  # of a piece; the last one marks it as complete
_AT_ONCE = 16  # requests


def local(folder: Path) -> Path:
    """The folder of this machine for a store: the store itself, or the copy of one in a bucket."""
    return files.cache_folder() / "tokens" / folder.name if paths.is_bucket(folder) else folder


def fetch(folder: Path, names: Sequence[str]) -> None:
    """Copy those of these pieces to this machine that are in the bucket and not here; else do nothing.

    Args:
      names: of their files, after "tokens_".

    Raises:
      UserError: the bucket cannot be read, or the copies cannot be written.
    """
    if not paths.is_bucket(folder):
        return
    wanted = [name for name in names if not _path(local(folder), _PARTS[-1], name).exists()]
    if len(wanted) > 1:
        there = buckets.objects(folder)
        wanted = [name for name in wanted if f"{_PARTS[-1]}_{name}" in there]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(functools.partial(_fetch, folder), wanted))


def send(folder: Path, name: str) -> None:
    """Copy a piece of this machine into the bucket that its store lies in; else do nothing.

    Raises:
      UserError: the bucket cannot be written.
    """
    if not paths.is_bucket(folder):
        return
    try:
        for part in _PARTS:
            content = _path(local(folder), part, name).read_bytes()
            buckets.write(_path(folder, part, name), content)
    except FileNotFoundError as error:
        raise UserError(f"cannot write {folder}: there is no such bucket") from error


def _fetch(folder: Path, name: str) -> None:
    for part in _PARTS:
        try:
            content = buckets.read(_path(folder, part, name))
        except FileNotFoundError:  # not made yet
            return
        _keep(_path(local(folder), part, name), content)


def _keep(path: Path, content: bytes) -> None:
    files.replace_in_cache(path, lambda file: file.write(content))


def _path(folder: Path, part: str, name: str) -> Path:
    return folder / f"{part}_{name}"
