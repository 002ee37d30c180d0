"""Datasets of TensorFlow Datasets (TFDS), stored as ArrayRecord files; TensorFlow is not needed.

The library finds datasets by name, downloads them, and understands slices of splits. A prepared folder
is read by `tfds_folder` and by this file, because the library runs code that a folder names.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fqs_jax.data.sources import array_records, text_files, tfds_folder
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.tfds_folder import INFO, Feature, Metadata
from fqs_jax.runtime import inputs, paths
from fqs_jax.runtime.errors import UserError, printable

Example = dict[str, Any]
_Run = tuple[Path, int, int]  # consecutive records: their file, the first one, their number


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A text feature of a split of a prepared TFDS dataset.

    Attributes:
      split: a split in TFDS's notation, slices included: `train[:50%]`.
      features: what an example has.
      firsts: the first record of each file that is read.
      ends: the number of records up to the end of each file.
    """

    files: tuple[Path, ...]
    split: str
    key: str
    features: dict[str, Feature]
    firsts: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def settings(self) -> str:
        return f"tfds {self.split} {self.key}"

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> str:
        text = self._read(index, {self.key: Feature("text")})[self.key]
        return text_files.whole(text, self.key, self.place(index))

    def place(self, index: int) -> str:
        return f"{self.files[0].parent}, record {index}"

    def example(self, index: int) -> Example:
        """All features of an example that can be read."""
        return self._read(index, self.features)

    def _read(self, index: int, features: dict[str, Feature]) -> Example:
        place = bisect.bisect_right(self.ends, index)
        row = index - (self.ends[place - 1] if place else 0) + self.firsts[place]
        path = self.files[place]
        try:
            return _decoded(array_records.record(path, row), features)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, record {row}: not UTF-8 text; write it again") from error
        except (ValueError, LookupError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise text_files.damaged(path, f"record {row}: {error}") from error


def open_tfds(name: str, split: str, key: str, options: Options) -> Tfds:
    """A text feature of a split of a TFDS dataset, named by its name or its folder.

    Raises:
      UserError: no such dataset, split or text feature exists, or the dataset is not prepared as
        ArrayRecord files.
    """
    metadata = tfds_folder.read(_folder(name, options))
    if metadata.format.lower() != "array_record":
        raise UserError(
            f"tfds:{name} is stored as {printable(metadata.format, 40)}, which needs TensorFlow to read; "
            "prepare it again with file_format='array_record'"
        )
    texts = [feature for feature, kind in metadata.features.items() if kind.kind == "text"]
    if key not in texts:
        seen = printable(", ".join(map(repr, texts)) or "none", 400)
        raise UserError(
            f"tfds:{name}: no text feature {key!r}; name one with data.text_key or tfds:{name}#FEATURE "
            f"(seen: {seen})"
        )
    runs = _runs(name, metadata, split)
    for path, first, size in runs:
        if array_records.count(path) < first + size:
            raise text_files.damaged(path, f"fewer records than {INFO} says")
    ends = tuple(itertools.accumulate(size for _, _, size in runs))
    files = tuple(path for path, _, _ in runs)
    return Tfds(files, split, key, metadata.features, tuple(run[1] for run in runs), ends)


def _runs(name: str, metadata: Metadata, split: str) -> list[_Run]:
    """The records of a split in TFDS's notation."""
    import tensorflow_datasets as tfds

    infos = {
        title: tfds.core.SplitInfo(title, [size for _, size in shards], 0)
        for title, shards in metadata.splits.items()
    }
    try:
        slices = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        bounds = [
            (str(part.splitname), part.from_ or 0, infos[str(part.splitname)].num_examples, part.to)
            for part in slices
        ]
    except Exception as error:  # the library has many ways to refuse a split
        titles = printable(", ".join(infos) or "none", 200)
        raise UserError(
            f"tfds:{name}: no split {printable(split, 100)!r}; it has {titles}, and slices of them"
        ) from error
    return [
        run
        for title, first, size, last in bounds
        for run in _slice(metadata.splits[title], first, size if last is None else last)
    ]


def _slice(shards: Sequence[tuple[Path, int]], first: int, last: int) -> list[_Run]:
    """The parts of records first to last - 1 in each file."""
    runs, begin = [], 0
    for path, size in shards:
        start, stop = max(first - begin, 0), min(last - begin, size)
        if start < stop:
            runs.append((path, start, stop - start))
        begin += size
    return runs


def _decoded(data: bytes, features: dict[str, Feature]) -> Example:
    """The features of a serialised tf.train.Example; those of kind "other" are left out."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        stored = tf_example_pb2.Example.FromString(data).features.feature
    except DecodeError as error:
        raise ValueError("no tf.train.Example") from error
    values = {name: _value(stored, name, feature) for name, feature in features.items()}
    return {name: value for name, value in values.items() if value is not None}


def _value(stored: Any, name: str, feature: Feature) -> Any:
    """The value of a feature; None for kinds that are not read."""
    if feature.kind == "dict":
        parts = {n: _value(stored, f"{name}/{n}", part) for n, part in feature.parts.items()}
        return {n: value for n, value in parts.items() if value is not None}
    if feature.kind == "list":
        inner = feature.parts[""]
        if inner.kind == "dict":  # stored as lists, one for each name
            lists = {n: Feature("list", {"": part}) for n, part in inner.parts.items()}
            return _value(stored, name, Feature("dict", lists))
        return _stored(stored, name, inner) if inner.kind in ("text", "number") else None
    if feature.kind == "other":
        return None
    values = _stored(stored, name, feature)
    if feature.kind == "text" and len(values) != 1:
        raise ValueError(f"{name!r} has {len(values)} values")
    return values[0] if len(values) == 1 else values


def _stored(stored: Any, name: str, feature: Feature) -> list[Any]:
    if name not in stored:
        raise LookupError(f"no {name!r}")
    value = stored[name]
    if feature.kind == "text":
        return [text.decode() for text in value.bytes_list.value]
    kind = value.WhichOneof("kind")
    return [] if kind is None else list(getattr(value, kind).value)


def _folder(name: str, options: Options) -> Path:
    """The folder of the one version of a prepared dataset, which is prepared if that is allowed."""
    path = paths.expand_local(name)
    if path.is_dir() or path.is_absolute() or name.startswith("."):
        return _prepared_folder(path)
    builder = _builder(name, options)
    if isinstance(builder, Path):
        return builder
    folder = Path(str(builder.data_path))
    if (folder / INFO).is_file():
        return folder
    if not options.download:
        raise UserError(
            f"tfds:{name} is not prepared in {folder}; to download and prepare it, "
            f"{options.to_fetch}"
        )
    try:
        builder.download_and_prepare()
    except Exception as error:  # a download can raise anything
        reason = printable(" ".join(str(error).split()), 200)
        raise UserError(f"tfds:{name} cannot be prepared ({reason})") from error
    return folder


def _builder(name: str, options: Options) -> Any:
    """TFDS's own builder of a dataset; or the folder of one that only the user's folder has.

    `tfds.builder` itself would build some datasets from their folder, and run what it names.
    """
    import tensorflow_datasets as tfds

    _find_shipped_builders()
    known = tfds.core.naming.parse_builder_name_kwargs
    folder = Path(options.tfds_dir or tfds.core.constants.DATA_DIR) / name.split(":")[0]
    try:
        title, arguments = known(name, data_dir=options.tfds_dir or None)
        return tfds.builder_cls(str(title))(**arguments, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        if folder.is_dir():
            return _prepared_folder(folder)
        raise _unknown(name) from error
    except (ValueError, AssertionError) as error:
        raise _unknown(name) from error
    except Exception as error:  # what a broken folder of that name makes the library raise
        raise text_files.damaged(folder, error) from error


def _unknown(name: str) -> UserError:
    return UserError(
        f"tfds:{printable(name, 100)}: TFDS has no dataset of that name; give the folder of a prepared "
        "one as tfds:DIR, or make one with python -m fqs_jax.prepare"
    )


def _find_shipped_builders() -> None:
    """Register TFDS's own text datasets: their modules are lazy and must be accessed first."""
    import tensorflow_datasets.question_answering as answering
    import tensorflow_datasets.text as text

    dir(text), dir(answering)


def _prepared_folder(path: Path) -> Path:
    """The folder itself, or the only prepared dataset below it (`NAME/VERSION`)."""
    if not path.is_dir():
        raise UserError(
            f"tfds:{inputs.name(path)}: no such folder; make it with python -m fqs_jax.prepare"
        )
    found = [path] if (path / INFO).is_file() else [p.parent for p in sorted(path.rglob(INFO))]
    if len(found) != 1:
        count = (
            f"{len(found)} TFDS datasets below it" if found else "no prepared TFDS dataset in it"
        )
        raise UserError(f"tfds:{inputs.name(path)}: {count}; name the folder that has {INFO}")
    return found[0]
