"""ArrayRecord files: single ones, and those of TensorFlow Datasets (TFDS), without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from fqs_jax.data.sources import text_files
from fqs_jax.data.sources.options import Options
from fqs_jax.runtime.errors import UserError

# Files in the folder of a prepared TFDS dataset.
INFO = "dataset_info.json"
FEATURES = "features.json"


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """Records of UTF-8 text, or of JSON objects with the text under a key."""

    files: tuple[Path, ...]
    key: str
    is_json: bool
    size: int

    @property
    def settings(self) -> str:
        return f"array_record {self.key if self.is_json else ''}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str:
        path = self.files[0]
        text = _record_text(path, index)
        return (
            text_files.text_of(text, self.key, f"{path}, record {index}") if self.is_json else text
        )


def open_array_records(path: Path, key: str) -> ArrayRecords:
    """The documents of an ArrayRecord file. The first record decides whether all are JSON objects.

    Raises:
      UserError: the file is damaged or belongs to a TFDS dataset, or the first record has no text
        under the key.
    """
    if (path.parent / FEATURES).is_file():
        raise UserError(f"{path} is part of a TFDS dataset; name its folder, tfds:{path.parent}")
    try:
        size = _reader(path).num_records()
    except (RuntimeError, ValueError) as error:
        raise text_files.damaged(path, error) from error
    is_json = False
    if size:
        try:
            is_json = isinstance(json.loads(_record_text(path, 0)), dict)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
    records = ArrayRecords((path,), key, is_json, size)
    if size:
        records[0]
    return records


@functools.lru_cache(maxsize=256)
def _reader(path: Path) -> Any:
    # No read-ahead: records are read in random order.
    reader = array_record_module.ArrayRecordReader(
        str(path), options="readahead_buffer_size:0", file_reader_buffer_size=1 << 15
    )
    if not reader.ok():
        reader.close()  # raises the reason
    return reader


def _record_text(path: Path, index: int) -> str:
    try:
        return _reader(path).read([index])[0].decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, record {index}: not UTF-8 text; write records of text") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise text_files.damaged(path, error) from error


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A text feature of a prepared TFDS dataset.

    Attributes:
      folder: the dataset's folder, of one version.
      split: a split in TFDS's notation, slices included: `train[:50%]`.
    """

    files: tuple[Path, ...]
    folder: str
    split: str
    key: str
    size: int

    @property
    def settings(self) -> str:
        return f"tfds {self.split} {self.key}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str:
        try:
            value = _examples(self.folder, self.split)[index][self.key]
        except (RuntimeError, IndexError) as error:
            raise text_files.damaged(Path(self.folder), error) from error
        return value.decode() if isinstance(value, bytes) else str(value)


def open_tfds(name: str, split: str, key: str, options: Options) -> Tfds:
    """A text feature of a split of a TFDS dataset, named by its name or its folder.

    Raises:
      UserError: no such dataset, split or text feature exists, or the dataset is not prepared as
        ArrayRecord files.
    """
    builder = _builder(name, options)
    splits, features = builder.info.splits, builder.info.features
    if "ARRAY_RECORD" not in str(builder.info.file_format).upper():
        raise UserError(
            f"tfds:{name} is stored as {builder.info.file_format.value}, which needs TensorFlow to read; "
            "prepare it again with file_format='array_record'"
        )
    try:
        info = splits[split]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"tfds:{name}: no split {split!r}; it has {', '.join(splits)}, and slices of them"
        ) from error
    texts = [feature for feature, kind in features.items() if type(kind).__name__ == "Text"]
    if key not in texts:
        raise UserError(
            f"tfds:{name}: no text feature {key!r}; name one with data.text_key or tfds:{name}#FEATURE "
            f"(seen: {', '.join(map(repr, texts)) or 'none'})"
        )
    folder = str(builder.data_path)
    paths = tuple(Path(instruction.filename) for instruction in info.file_instructions)
    try:
        return Tfds(paths, folder, split, key, len(_examples(folder, split)))
    except (RuntimeError, OSError, ValueError) as error:
        raise text_files.damaged(Path(folder), error) from error


@functools.lru_cache(maxsize=64)
def _examples(folder: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder).as_data_source(split=split)


def _builder(name: str, options: Options) -> Any:
    import tensorflow_datasets as tfds

    path = Path(name).expanduser()
    if path.is_dir() or path.is_absolute() or name.startswith((".", "~")):
        return tfds.builder_from_directory(_prepared_folder(path))
    make = functools.partial(
        tfds.builder, name, data_dir=options.tfds_dir or None, file_format="array_record"
    )
    try:
        _find_shipped_builders()
        builder = make()
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(
            f"tfds:{name}: TFDS has no dataset of that name; give the folder of a prepared one as "
            "tfds:DIR, or make one with python -m fqs_jax.prepare"
        ) from error
    if not builder.info.splits:
        if not options.download:
            raise UserError(
                f"tfds:{name} is not prepared in {builder.data_path}; to download and prepare it, add "
                f"{options.download_flag} (data.tfds_dir says where)"
            )
        try:
            builder.download_and_prepare()
        except Exception as error:  # a download can raise anything
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"tfds:{name} cannot be prepared ({reason})") from error
    return builder


def _find_shipped_builders() -> None:
    """Register TFDS's own text datasets: their modules are lazy and must be accessed first."""
    import tensorflow_datasets.question_answering as answering
    import tensorflow_datasets.text as text

    dir(text), dir(answering)


def _prepared_folder(path: Path) -> Path:
    """The folder itself, or the only prepared dataset below it (`NAME/VERSION`)."""
    if not path.is_dir():
        raise UserError(f"tfds:{path}: no such folder; make it with python -m fqs_jax.prepare")
    found = [path] if (path / INFO).is_file() else [p.parent for p in sorted(path.rglob(INFO))]
    if len(found) != 1:
        count = (
            f"{len(found)} TFDS datasets below it" if found else "no prepared TFDS dataset in it"
        )
        raise UserError(f"tfds:{path}: {count}; name the folder that has {INFO}")
    return found[0]
