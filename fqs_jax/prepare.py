"""Prepare a large text for training: `python -m fqs_jax.prepare --text='corpus/*.jsonl' --out=DIR`.

Writes the documents as a TFDS dataset of ArrayRecord files: any document can be read directly, and
the whole text is never scanned again. TensorFlow is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags

from fqs_jax.runtime import cli, files, paths, typed_flags
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.progress import Progress

_TEXT = flags.DEFINE_string(
    "text", "", "Documents, as for training (docs/data.md), without weights."
)
_OUT = typed_flags.define_path("out", "", "Folder to write; must not exist or be empty.")
_NAME = flags.DEFINE_string("name", "", "Name of the dataset; default: the folder's name.")
_TEXT_KEY = flags.DEFINE_string("text_key", "text", "The field, column or feature with the text.")
_VALIDATION_SHARE = typed_flags.define_number(
    "validation_share", 0.0, "Share of the documents to put into split `validation`.", 0.0, 1.0
)
_CACHE_DIR = typed_flags.define_path(
    "cache_dir", "", "Folder for caches; default ~/.cache/fqs_jax.", local=True
)
_TFDS_DIR = typed_flags.define_path(
    "tfds_dir", "", "Folder of prepared TFDS datasets; default: TFDS's own.", local=True
)
_DOWNLOAD = flags.DEFINE_bool(
    "download", False, "Allow tfds: and hub: to download missing datasets."
)


def main(_: Sequence[str]) -> None:
    cli.require(text=_TEXT.value, out=_OUT.value)
    # Imported here, because --help should not wait for them.
    from fqs_jax.data.sources import options as options_lib
    from fqs_jax.data.sources import tfds_writer
    from fqs_jax.data.sources.specification import open_sources

    if _VALIDATION_SHARE.value == 1:
        raise UserError(
            f"--validation_share is {_VALIDATION_SHARE.value}; set 0 or more, and below 1"
        )
    out = files.check_free(_OUT.value)  # before the text is read
    options = options_lib.of(_TEXT_KEY.value, _CACHE_DIR.value, _TFDS_DIR.value, _DOWNLOAD.value)
    found = open_sources(_TEXT.value, options)
    if len(found) > 1:
        raise UserError("--text has weights; leave them out here, and give them when training")
    [(source, _weight)] = found
    name = re.sub("[^a-z0-9]+", "_", paths.full(out).name.lower()).strip("_")
    name = _NAME.value or (name if name[:1].isalpha() else f"corpus_{name}".strip("_"))
    passes = 2 if _VALIDATION_SHARE.value else 1
    with Progress("documents", 0, passes * len(source)) as bar:
        sizes = tfds_writer.build_dataset(
            source, out, name, _VALIDATION_SHARE.value, bar.advance_to
        )
    for split, size in sizes.items():
        print(f"{split}: {size:,} documents")
    name = f"tfds:{_OUT.value}{':train' if len(sizes) > 1 else ''}"
    print(f"read it with {cli.quote(f'--text={name}')}")


if __name__ == "__main__":
    cli.run(main)
