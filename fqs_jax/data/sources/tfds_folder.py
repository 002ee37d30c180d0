"""The metadata of a prepared TFDS dataset, read without TFDS.

TFDS imports the module of every class that `features.json` or `dataset_info.json` names, so a folder of
data could run code. Here a class is only compared with the names of those that are understood.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable

INFO = "dataset_info.json"
FEATURES = "features.json"
MOST_SHARDS = 100_000
MOST_RECORDS = 1 << 40
_CLASS = re.compile(r"tensorflow_datasets\.core\.features\.(?:\w+\.)?(\w+)")
_NUMBERS = ("Tensor", "Scalar", "ClassLabel")
_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # TFDS's own names of files
_MOST_NESTED = 20

Json = Any


@dataclasses.dataclass(frozen=True)
class Feature:
    """The content of an example under a name.

    Attributes:
      kind: "text", "number" (of any type), "list", "dict", or "other": what is not read.
      parts: the features of a dict by name; that of a list under "".
    """

    kind: str
    parts: dict[str, Feature] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """A prepared dataset.

    Attributes:
      format: how the records are stored, such as `array_record`.
      splits: the files of each split, each with its number of records.
    """

    folder: Path
    format: str
    features: dict[str, Feature]
    splits: dict[str, tuple[tuple[Path, int], ...]]


def read(folder: Path) -> Metadata:
    """The metadata of a folder of one version of a dataset.

    Raises:
      UserError: a file is missing or malformed, or names a file outside the folder.
    """
    features = _features(folder / FEATURES)
    path = folder / INFO
    info = inputs.read_json(path)
    kind, name = info.get("fileFormat", "tfrecord"), info.get("name", "")
    if not isinstance(kind, str) or not isinstance(name, str):
        raise _malformed(path, "fileFormat and name must be strings")
    splits = info.get("splits", [])
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise _malformed(path, "splits must be a list of objects")
    found = {}
    for split in splits:
        title = split.get("name")
        if not isinstance(title, str) or not re.fullmatch(r"\w[\w.-]*", title):
            raise _malformed(path, f"a split is called {title!r}")
        found[title] = _shards(path, split, {"DATASET": name, "SPLIT": title, "FILEFORMAT": kind})
    return Metadata(folder, kind, features, found)


def _shards(path: Path, split: Json, names: dict[str, str]) -> tuple[tuple[Path, int], ...]:
    lengths = split.get("shardLengths", [])
    if not isinstance(lengths, list) or len(lengths) > MOST_SHARDS:
        raise _malformed(path, f"shardLengths must be a list of up to {MOST_SHARDS} numbers")
    sizes = [_count(path, length) for length in lengths]
    template = split.get("filepathTemplate") or _NAME
    if not isinstance(template, str) or len(template) > 300:
        raise _malformed(path, "filepathTemplate must be a short string")
    shards = []
    for number, size in enumerate(sizes):
        index, total = f"{number:05d}", f"{len(sizes):05d}"
        values = names | {"SHARD_INDEX": index, "NUM_SHARDS": total}
        values["SHARD_X_OF_Y"] = f"{index}-of-{total}"
        name = template.replace("${", "{")
        for field, value in values.items():
            name = name.replace(f"{{{field}}}", value)
        if not re.fullmatch(r"(?!\.{1,2}$)[^/\\\0{}]{1,255}", name):
            raise _malformed(path, f"{template!r} is no name of a file of this folder")
        shards.append((path.parent / name, size))
    return tuple(shards)


def _count(path: Path, value: Json) -> int:
    """A number of records, which Protocol Buffers write as a string."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= MOST_RECORDS:
        raise _malformed(path, f"shardLengths has {value!r}, which is no number of records")
    return value


def _features(path: Path) -> dict[str, Feature]:
    feature = _feature(path, inputs.read_json(path), 0)
    if feature.kind != "dict":
        raise _malformed(path, "the features must be a FeaturesDict of TFDS")
    return feature.parts


def _feature(path: Path, value: Json, depth: int) -> Feature:
    if not isinstance(value, dict) or depth > _MOST_NESTED:
        raise _malformed(path, "a feature must be an object" if depth <= _MOST_NESTED else "nested")
    legacy = "type" in value  # how TFDS wrote features before version 4.5
    called = value.get("type") if legacy else value.get("pythonClassName")
    match = _CLASS.fullmatch(called) if isinstance(called, str) else None
    kind = match[1] if match else ""
    if kind == "FeaturesDict":
        parts = value.get("content") if legacy else _inner(path, value, "featuresDict", "features")
        if not isinstance(parts, dict):
            raise _malformed(path, "a FeaturesDict must have an object of features")
        return Feature("dict", {n: _feature(path, part, depth + 1) for n, part in parts.items()})
    if kind == "Sequence":
        holder = "content" if legacy else "sequence"
        part = _inner(path, value, holder, "feature")
        return Feature("list", {"": _feature(path, part, depth + 1)})
    if kind == "Text":
        return Feature("text")
    if kind not in _NUMBERS:
        return Feature("other")
    shape = (value.get("tensor") or {}).get("shape") if kind == "Tensor" and not legacy else None
    return Feature("list", {"": Feature("number")}) if shape else Feature("number")


def _inner(path: Path, value: Json, holder: str, field: str) -> Json:
    held = value.get(holder)
    if not isinstance(held, dict):
        raise _malformed(path, f"a feature has no object {holder!r}")
    return held.get(field, {})


def _malformed(path: Path, problem: str) -> UserError:
    return UserError(f"{inputs.name(path)}: {printable(problem, 200)}; prepare the dataset again")
