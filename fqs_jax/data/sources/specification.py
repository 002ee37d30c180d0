"""Specifications of sources: `a/*.jsonl,tfds:gsm8k:train` names where documents come from.

A specification has comma-separated parts. Each may end in `#KEY` (the field with the text) and
`@WEIGHT`:

    notes/*.txt                  one document per file
    part-*.jsonl                 one document per line
    part-*.parquet               a column
    part-*.array_record          text, or JSON objects
    saved/[:SPLIT]               a folder that Hugging Face `datasets` wrote with save_to_disk
    tfds:NAME[:SPLIT]            TensorFlow Datasets; tfds:DIR[:SPLIT] is a prepared one, by its folder
    hub:OWNER/NAME[:SPLIT]       the Hugging Face hub

A source reads documents by number and keeps only their locations in memory.
"""

from __future__ import annotations

import bisect
import dataclasses
import glob
import hashlib
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from fqs_jax.data import messages
from fqs_jax.data.sources import (
    array_records,
    hub,
    tables,
    text_files,
    tfds_datasets,
    tfds_folder,
)
from fqs_jax.data.sources.options import Options
from fqs_jax.runtime import inputs, local_copies, paths
from fqs_jax.runtime.errors import UserError, printable

RECORDS = (".array_record", ".arrayrecord")
SUFFIXES = (".txt", ".jsonl", ".parquet", *RECORDS)
_WHOLE = 1 << 24  # bytes; larger files are identified by their size and samples of their content
_SAMPLES, _SAMPLE = 64, 1 << 14
LEAST_WEIGHT, MOST_WEIGHT = 1e-9, 1e9
_WEIGHT = re.compile(r"(?i)(.+)@([-+]?(?:[0-9.]+(?:e[-+]?[0-9]+)?|nan|inf(?:inity)?))")


class Source(Protocol):
    """Documents by number. Sources can be pickled, and read from several threads.

    Attributes:
      files: the files that the documents are read from.
      settings: everything else that determines the documents.
    """

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def settings(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...

    def place(self, index: int) -> str:
        """The place of a document, for messages: file and line."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents in memory."""

    texts: Sequence[str]
    files: tuple[Path, ...] = ()

    @property
    def settings(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]

    def place(self, index: int) -> str:
        return f"document {index + 1}"


class Concatenation:
    """Sources one after another."""

    def __init__(self, parts: Sequence[Source]):
        self.parts = [part for part in parts if len(part)]
        self.ends = list(itertools.accumulate(map(len, self.parts)))
        self.files = tuple(path for part in self.parts for path in part.files)
        self.settings = "; ".join(part.settings for part in self.parts)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> str:
        part, own = self._own(index)
        return part[own]

    def place(self, index: int) -> str:
        part, own = self._own(index)
        return part.place(own)

    def _own(self, index: int) -> tuple[Source, int]:
        """The part that a document is in, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self.ends, index)
        return self.parts[part], index - (self.ends[part - 1] if part else 0)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of a specification; `weight` is None if none is given."""

    name: str
    key: str
    weight: Fraction | None


def open_sources(names: str | Sequence[str], options: Options) -> list[tuple[Source, int]]:
    """The sources of a specification, each with its weight.

    Without weights, all parts are one source: files sorted by path, then other datasets, each once.
    With weights, each part is its own source.

    Args:
      names: parts, comma-separated or as a list. A path that contains a comma needs a list.

    Raises:
      UserError: a part names nothing, or a source that cannot be read.
    """
    parts = _parse(names, options.key)
    weights = [part.weight for part in parts if part.weight is not None]
    if not weights:
        return [(_open(parts, options), 1)]
    if len(weights) < len(parts):
        bare = next(part.name for part in parts if part.weight is None)
        raise UserError(f"{bare} has no weight but others do; give all of them one, or none")
    scale = math.lcm(*(weight.denominator for weight in weights))
    return [
        (_open([part], options), int(weight * scale))
        for part, weight in zip(parts, weights, strict=True)
    ]


def fingerprint(source: Source) -> str:
    """A hash of the documents that does not depend on where the files are.

    Files up to 16 MiB are hashed completely, larger ones by their size and 64 samples of 16 KiB.

    Raises:
      UserError: a file cannot be read.
    """
    digest = hashlib.sha256(f"{len(source)} {source.settings}".encode())
    for path in source.files:
        try:
            digest.update(_content(path))
        except OSError as error:
            raise text_files.unreadable(path, error) from error
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    size = text_files.check_file(path).st_size
    with text_files.open_file(path) as file:
        if size <= _WHOLE:
            return hashlib.sha256(file.read()).digest()
        digest = hashlib.sha256(str(size).encode())
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
        return digest.digest()


def _parse(names: str | Sequence[str], key: str) -> list[_Part]:
    parts = names.split(",") if isinstance(names, str) else names
    parts = [part.strip() for part in parts if part.strip()]
    if not parts:
        raise UserError(f"no text was named; give paths or globs of {', '.join(SUFFIXES)} files")
    return [_parse_part(part, key) for part in parts]


def _parse_part(part: str, key: str) -> _Part:
    if _exists(part):  # a literal path, whatever its name contains
        return _Part(part, key, None)
    weight = None
    if match := _WEIGHT.fullmatch(part):
        part = match[1]
        weight = _weight(part, match[2])
    if "#" in part and not _exists(part):
        part, key = part.rsplit("#", 1)
    return _Part(local_copies.of_text(part), key, weight)


def _weight(part: str, text: str) -> Fraction:
    """The weight of a part, exactly as it is written."""
    shown = f"{printable(part, 200)}: the weight is {printable(text, 40)}"
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(
            f"{printable(part, 200)}: {printable(text, 40)!r} is no weight; write it as in @0.3"
        ) from error
    if value <= 0:
        raise UserError(f"{shown}; set it above 0, or leave it out")
    # Beyond these, a part is never read; and the exact fraction of 1e999999999 would fill the memory.
    if not LEAST_WEIGHT <= value <= MOST_WEIGHT or len(text) > 40:
        raise UserError(f"{shown}; set it from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return Fraction(text)


def _exists(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name))  # False also for what cannot be a path


_Open = Callable[[], Sequence[Source]]


def _open(parts: Sequence[_Part], options: Options) -> Source:
    """The documents of all parts, as one source."""
    named: dict[tuple[str, str], Path] = {}
    others: dict[str, _Open] = {}
    for part in parts:
        if (opener := _dataset_opener(part, options)) is not None:
            _refuse_chat(part.name, options)
            others[f"{part.name}#{part.key}"] = opener
        else:
            named |= {(str(path), part.key): path for path in _match(part.name)}
    found: list[Source] = []
    keyed = [(named[name], name[1]) for name in sorted(named)]
    for (suffix, key), group in itertools.groupby(keyed, _kind):
        found += _open_files(suffix, [path for path, _ in group], key, options)
    for opener in others.values():
        found += opener()
    source = Concatenation(found)
    if not len(source):
        first = str(keyed[0][0]) if keyed else parts[0].name
        more = f" and {len(keyed) + len(others) - 1} more" if len(keyed) + len(others) > 1 else ""
        raise UserError(f"{first}{more}: nothing but blanks; name files that contain text")
    return source.parts[0] if len(source.parts) == 1 else source


def _dataset_opener(part: _Part, options: Options) -> _Open | None:
    """A function that opens the dataset that a part names; None for a part that names files."""
    kind, colon, rest = part.name.partition(":")
    if colon and kind in ("tfds", "hub"):
        name, _, split = rest.partition(":")
        paths.expand_local(rest)  # refuses addresses
        if not name:
            raise UserError(
                f"{part.name}: the name of the dataset is missing; write it as {kind}:NAME[:SPLIT]"
            )
        split = split or "train"
        if kind == "tfds":
            return lambda: [tfds_datasets.open_tfds(name, split, part.key, options)]
        return lambda: tables.open_parquet(
            hub.parquet_files(name, split, options), part.key, options
        )
    folder, split = paths.expand_local(part.name), ""
    if ":" in part.name and not _exists(part.name):
        name, _, split = part.name.rpartition(":")
        folder = paths.expand_local(name)
    if any(os.path.isfile(folder / mark) for mark in (tables.DATASET, tables.SPLITS)):
        return lambda: tables.open_saved_dataset(folder, split, part.key, options)
    if os.path.isfile(folder / tfds_folder.FEATURES):
        return lambda: [tfds_datasets.open_tfds(f"{folder}/", split or "train", part.key, options)]
    return None


def _open_files(suffix: str, files: Sequence[Path], key: str, options: Options) -> Sequence[Source]:
    """The documents of files of one kind, in this order."""
    if suffix not in (".jsonl", *RECORDS):
        _refuse_chat(str(files[0]), options)
    read = messages.training_document if options.chat else text_files.text_of
    if suffix == ".txt":
        return [text_files.open_text_files(tuple(files))]
    if suffix == ".parquet":
        return tables.open_parquet(files, key, options)
    if suffix == ".jsonl":
        return [text_files.open_json_lines(path, key, options, read) for path in files]
    return [array_records.open_array_records(path, key, read) for path in files]


def _refuse_chat(name: str, options: Options) -> None:
    """Refuse a source whose documents are always text."""
    if options.chat:
        raise UserError(
            f"{inputs.name(name)}: conversations are read from .jsonl and .array_record files; write "
            "them as one of these, or leave data.messages_key out"
        )


def _kind(item: tuple[Path, str]) -> tuple[str, str]:
    """The kind of a file, equal for those that are opened together: its suffix, and the key unless `.txt`."""
    path, key = item
    suffix = _suffix(path)
    return suffix, "" if suffix == ".txt" else key


def _match(pattern: str) -> list[Path]:
    literal = paths.expand_local(pattern)
    shown = inputs.name(pattern)
    if os.path.isdir(literal):
        raise UserError(
            f"{shown} is a folder; name its files, for example {shown.rstrip('/')}/*.txt"
        )
    # An existing file is meant literally, even if its name is also a glob ("part[1].txt").
    is_file = os.path.exists(literal)
    found = [literal] if is_file else map(Path, glob.glob(str(literal), recursive=True))
    files = [path for path in found if not path.is_dir()]
    if not files:
        raise UserError(f"no file matches {shown} (looked from {Path.cwd()}); check the path")
    for path in files:
        if _suffix(path) not in SUFFIXES:
            raise UserError(
                f"{inputs.name(path)}: not a file of text ({', '.join(SUFFIXES)}); leave it out or convert it"
            )
    return files


def _suffix(path: Path) -> str:
    """The suffix in lower case, without the `-00000-of-00001` at the end of TFDS's file names."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", path.name.lower()[path.name.rfind(".") :])
