"""Writer of TFDS datasets: documents to ArrayRecord files, without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from fqs_jax.data.sources.specification import Source
from fqs_jax.data.sources.tfds_folder import INFO
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.files import new_folder


class Corpus(tfds.core.GeneratorBasedBuilder):
    """Documents with one feature, `text`, in the order of the source; blank ones are left out."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        source: Source,
        validation_share: float,
        progress: Callable[[int], None],
        **arguments: Any,
    ):
        self.source = source
        self.validation_share = validation_share
        self.progress = progress
        self.problem: UserError | None = None  # TFDS would wrap it in its own message
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        # Not shuffled by TFDS: training shuffles in every epoch.
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        names = ("train", "validation") if self.validation_share else ("train",)
        return {
            name: self._generate_examples(name == "validation", place * len(self.source))
            for place, name in enumerate(names)
        }

    def _generate_examples(
        self, validation: bool, done_before: int
    ) -> Iterator[tuple[int, dict[str, str]]]:
        for index in range(len(self.source)):
            try:
                text = self.source[index]
            except UserError as problem:
                self.problem = problem
                raise
            if text.strip() and _is_validation(text, self.validation_share) == validation:
                yield index, {"text": text}
            self.progress(done_before + index + 1)


def build_dataset(
    source: Source,
    out: Path,
    name: str,
    validation_share: float,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Write the documents to `out`, which appears complete or not at all.

    Args:
      name: name of the dataset, in lower case with underscores.
      validation_share: share of the documents that is set aside as split `validation`. A document's
        split is a function of its text, so equal documents are in the same split.
      progress: called with the number of documents read so far; each split reads all of them.

    Returns:
      The number of documents of each split.

    Raises:
      UserError: bad arguments, `out` exists, a split would be empty, or `out` cannot be written.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise UserError(f"the name is {name!r}; use lower-case letters, digits and underscores")
    if not 0 <= validation_share < 1:
        raise UserError(f"validation_share is {validation_share}; set 0 or more, and below 1")
    with new_folder(out) as folder, _quiet():
        builder = _named(name)(
            source=source,
            validation_share=validation_share,
            progress=progress,
            data_dir=str(folder),
            file_format="array_record",
        )
        try:
            builder.download_and_prepare()
        except Exception as error:
            if builder.problem:
                raise builder.problem from None
            if "No examples" in str(error):
                raise UserError(
                    "a split has no documents; change --validation_share or the text"
                ) from error
            if isinstance(error, RuntimeError | OSError):  # the writer's, on a full disk
                reason = printable(" ".join(str(error).split()), 200)
                raise UserError(f"cannot write {out}: {reason}") from error
            raise
        sizes = {split: int(info.num_examples) for split, info in builder.info.splits.items()}
        _flatten(folder)
    return sizes


def _named(name: str) -> type[Corpus]:
    """A subclass for this name, because TFDS names a dataset after its class."""
    with tfds.core.registered.skip_registration():
        return type(name, (Corpus,), {"name": name, "__module__": __name__, "pkg_dir_path": None})


def _is_validation(text: str, share: float) -> bool:
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return drawn < share * 2**64


def _flatten(folder: Path) -> None:
    """Move the dataset, which TFDS writes to NAME/VERSION, into the folder itself."""
    [info] = folder.rglob(INFO)
    others = list(folder.iterdir())
    for path in info.parent.iterdir():
        path.rename(folder / path.name)
    for path in others:
        shutil.rmtree(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence TFDS, which prints messages and draws its own progress bars."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
