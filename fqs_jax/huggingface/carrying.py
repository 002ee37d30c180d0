"""Copies of the small files that a model keeps through training and export: tokenizer, licence, templates.

Only files of the folder itself are copied (runtime/own_files.py).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

from fqs_jax.runtime import inputs, own_files
from fqs_jax.runtime.errors import UserError

_MIB = 1 << 20
# Files that an export copies from its source, and their largest size: those of the tokenizer, of
# generation and of the licence. Never weights.
CARRIED = {
    "tokenizer*": 64 * _MIB,
    "special_tokens_map.json": _MIB,
    "added_tokens.json": 16 * _MIB,
    "vocab.*": 64 * _MIB,
    "merges.txt": 64 * _MIB,
    "*.tiktoken": 64 * _MIB,
    "tekken.json": 64 * _MIB,
    "chat_template*": _MIB,
    "additional_chat_templates/*": _MIB,
    "generation_config.json": _MIB,
    "LICENSE*": _MIB,
    "NOTICE*": _MIB,
}
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack"}


def carry(source: Path, folder: Path) -> None:
    """Copy the files that an export takes from its source (CARRIED), byte for byte.

    Raises:
      UserError: one of them is a link out of the source, no regular file, or too large.
    """
    for path, most in _carried(source):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(own_files.read(path, source, most))


def check_carried(source: Path) -> None:
    """Refuse a source whose files cannot be carried, before anything is made of it.

    Raises:
      UserError: the same errors as `carry`.
    """
    for path, most in _carried(source):
        size = inputs.check_file(own_files.check(path, source)).st_size
        if size > most:
            raise UserError(
                f"{inputs.name(path)} is larger than {most // _MIB} MiB, the most that is copied of "
                "such a file; remove it if it is something else"
            )


def _carried(source: Path) -> Iterator[tuple[Path, int]]:
    """The files to carry and their largest sizes; each once, although patterns overlap."""
    seen = set()
    for pattern, most in CARRIED.items():
        folder = (source / pattern).parent
        # Path.glob leaves out links to nothing, but only for names without a star.
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            fits = fnmatch.fnmatchcase(path.name, Path(pattern).name)
            if (
                fits
                and path not in seen
                and not path.is_dir()
                and path.suffix not in WEIGHT_SUFFIXES
            ):
                seen.add(path)
                yield path, most
