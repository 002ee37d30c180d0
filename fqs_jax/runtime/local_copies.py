"""Copies of what lies in a bucket, for libraries that read files of this machine only.

A copy is made once: its folder in the cache is named after the names, sizes and generations of the objects.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fqs_jax.runtime import buckets, files, paths
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.notes import note

_WORTH_A_LINE = 1 << 20  # bytes
_SPECIFIED = re.compile(r"((?:tfds:)?)(gs://[^:]*)((?::.*)?)", re.DOTALL)


def of(path: Path) -> Path:
    """A file or folder of this machine with the same content; a path of this machine is its own.

    A path that does not exist in the bucket has a copy that does not exist either.

    Raises:
      UserError: it cannot be read, or the copy cannot be written.
    """
    if not paths.is_bucket(path):
        return path
    found = buckets.objects(path)
    if found:
        return _copy(path, found) / path.name
    try:
        with buckets.explained("read", path):
            info = buckets.client().info(os.fspath(path))
    except FileNotFoundError:
        return files.cache_folder() / "buckets" / "missing" / path.name
    return _copy(path.parent, {path.name: info}) / path.parent.name / path.name


def of_text(name: str) -> str:
    """A part of --text (a file, a glob, a saved dataset, tfds:FOLDER) with a local name for one in a bucket.

    Raises:
      UserError: as in `of`, or nothing matches.
    """
    match = _SPECIFIED.fullmatch(name)
    if match is None:
        return name
    kind, place, split = match.groups()
    if not glob.has_magic(place):
        copy = of(paths.expand(place))
        if not copy.exists():
            raise UserError(f"there is no object or folder {place}; check the name")
        return f"{kind}{copy}{split}"
    base, pattern = _split_pattern(place)
    folder = paths.expand(base)
    prefix = base.removeprefix("gs://")
    known = buckets.objects(folder)
    with buckets.explained("read", place):
        matched = set(buckets.client().glob(place))
    found = {name: info for name, info in known.items() if f"{prefix}/{name}" in matched}
    if not found:
        raise UserError(f"no object matches {place}; check the path")
    return f"{_copy(folder, found) / folder.name}/{pattern}"


def _split_pattern(place: str) -> tuple[str, str]:
    """The folder before the first part with a wildcard, and the rest."""
    parts = place.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    if first < 4:  # gs:, "", bucket, folder
        raise UserError(f"{place}: name a folder of the bucket before the first wildcard")
    return "/".join(parts[:first]), "/".join(parts[first:])


def _copy(folder: Path, found: Mapping[str, Mapping[str, Any]]) -> Path:
    """A folder of the cache in which a folder of this name holds the objects."""
    facts = [[name, info.get("size"), info.get("generation")] for name, info in found.items()]
    key = hashlib.sha256(repr([os.fspath(folder), facts]).encode()).hexdigest()[:16]
    target = files.cache_folder() / "buckets" / key
    if target.is_dir():
        return target
    size = sum(int(info.get("size") or 0) for info in found.values())
    if size >= _WORTH_A_LINE:
        note(f"copying {folder} ({size / 1e6:.0f} MB) to {target}, once for this version")
    try:
        with files.new_folder(target) as temporary:
            _download(folder, found, temporary / folder.name)
    except UserError:
        if not target.is_dir():  # another process has made it meanwhile
            raise
    return target


def _download(folder: Path, found: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    for name, info in found.items():
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with buckets.explained("read", folder / name):
            buckets.client().get_file(os.fspath(folder / name), str(place))
        # The same time on all machines: what is made from a text is found again by it.
        if generation := int(info.get("generation") or 0):  # microseconds since 1970
            os.utime(place, ns=(generation * 1000, generation * 1000))
