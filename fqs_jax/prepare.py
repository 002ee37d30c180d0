"""Prepare a large text for training: `python -m fqs_jax.prepare --text='corpus/*.jsonl' --out=DIR`.

Writes the documents as a TFDS dataset of ArrayRecord files: any document can be read directly, and
the whole text is never scanned again. TensorFlow is not needed.

With --tokenizer=HF_DIR it makes the tokens of a large text instead, for runs with packed rows, before any
accelerator is rented. --part=3/16 makes the third of 16 parts, so that many machines can share the work.
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
_TOKENIZER = typed_flags.define_path(
    "tokenizer", "", "Hugging Face folder: make the tokens of the text for it, and nothing else."
)
_PART = flags.DEFINE_string("part", "1/1", "K/N: make the tokens of the K-th of N parts only.")
_MESSAGES_KEY = flags.DEFINE_string(
    "messages_key", "", "With --tokenizer: the field with the conversation, as for training."
)
_OUT = typed_flags.define_path("out", "", "Folder to write; must not exist or be empty.")
_NAME = flags.DEFINE_string("name", "", "Name of the dataset; default: the folder's name.")
_TEXT_KEY = flags.DEFINE_string("text_key", "text", "The field, column or feature with the text.")
_VALIDATION_SHARE = typed_flags.define_number(
    "validation_share", 0.0, "Share of the documents to put into split `validation`.", 0.0, 1.0
)
_CACHE_DIR = typed_flags.define_path(
    "cache_dir", "", "Folder for caches, and for tokens; default ~/.cache/fqs_jax."
)
_TFDS_DIR = typed_flags.define_path(
    "tfds_dir", "", "Folder of prepared TFDS datasets; default: TFDS's own.", local=True
)
_DOWNLOAD = flags.DEFINE_bool(
    "download", False, "Allow tfds: and hub: to download missing datasets."
)


def main(_: Sequence[str]) -> None:
    cli.require(text=_TEXT.value)
    if _TOKENIZER.value:
        _make_tokens()
        return
    if _PART.value != "1/1" or _MESSAGES_KEY.value:
        raise UserError("--part and --messages_key are for tokens; give --tokenizer=HF_DIR")
    cli.require(out=_OUT.value)
    # Imported here, because --help should not wait for them.
    from fqs_jax.data.sources import options as options_lib
    from fqs_jax.data.sources import tfds_writer
    from fqs_jax.data.sources.specification import open_sources

    if _VALIDATION_SHARE.value == 1:
        raise UserError(
            f"--validation_share is {_VALIDATION_SHARE.value}; set 0 or more, and below 1"
        )
    out = files.check_free(_OUT.value)  # before the text is read
    options = options_lib.of(
        _TEXT_KEY.value, _CACHE_DIR.value, _TFDS_DIR.value, _DOWNLOAD.value, "--download"
    )
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


def _make_tokens() -> None:
    from fqs_jax import huggingface
    from fqs_jax.configs import common
    from fqs_jax.data import corpus
    from fqs_jax.data import tokenizer as tokenizer_lib
    from fqs_jax.data.rows import token_store
    from fqs_jax.runtime import local_copies

    share = token_store.read_share(_PART.value)
    if _OUT.value:
        raise UserError("--out is for documents; tokens go to --cache_dir")
    if _NAME.value or _VALIDATION_SHARE.value:
        raise UserError("--name and --validation_share are for documents; leave --tokenizer out")
    folder = local_copies.of(paths.expand(_TOKENIZER.value))
    tokenizer = tokenizer_lib.load(folder)
    if (folder / "config.json").exists():  # as in training
        tokenizer = tokenizer.for_table(huggingface.read_config(folder).vocab_size, folder)
    data = common.get_config().data
    data.source, data.text, data.text_key = "text", _TEXT.value, _TEXT_KEY.value
    data.messages_key, data.download = _MESSAGES_KEY.value, _DOWNLOAD.value
    data.cache_dir, data.tfds_dir = _CACHE_DIR.value, _TFDS_DIR.value
    cache = corpus.options(data).tokens
    for source, _weight in corpus.sources(data, 0, folder, download_flag="--download"):
        made = token_store.prepare(source, tokenizer, cache, share)
        if made is None:
            size = token_store.IN_MEMORY >> 20
            print(f"nothing to do: a text of up to {size} MiB is tokenized at each start")
        else:
            print(f"part {_PART.value}: {made[0]:,} pieces of {made[1]:,} in {made[2]}")
    given = f"--config.data.cache_dir={_CACHE_DIR.value}" if _CACHE_DIR.value else ""
    print(
        f"train with {' '.join(filter(None, ('--config.data.rows=pack', given and cli.quote(given))))}"
    )


if __name__ == "__main__":
    cli.run(main)
