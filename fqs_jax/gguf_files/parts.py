"""A model of one or several GGUF files: `NAME-00001-of-00003.gguf` is the first of three.

The first part has all metadata; each part has some of the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fqs_jax.gguf_files import header
from fqs_jax.gguf_files.header import Header
from fqs_jax.huggingface.fields import integer, shown, text
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_MOST_PARTS = (1 << 16) - 1  # the format counts them in 16 bits


def read_model(path: Path) -> Header:
    """Metadata and tensors of a language model; those of all its parts, if `path` is the first of them.

    Raises:
      UserError: as for `header.read`; or the file is an adapter, the reader of images, or another kind of
        file; or it is not the first part, or another part is missing or belongs to another model.
    """
    first = header.read(path)
    number, count = _place(first)
    others = _other_parts(path, number, count) if count > 1 else []
    try:
        _check_kind(first.metadata)
    except UserError as error:
        raise UserError(f"{inputs.name(path)}: {error}") from error
    tensors = dict(first.tensors)
    for i, part in enumerate(others, start=1):
        other = header.read(part)
        if _place(other) != (i, count):
            raise UserError(f"{inputs.name(part)} is no part of the model of {path.name}")
        for name, tensor in other.tensors.items():
            if name in tensors:
                raise UserError(f"{tensor.place} is also in {tensors[name].file.name}")
            tensors[name] = tensor
    if not others:
        return first
    if len(tensors) != (all_of_them := first.metadata.get("split.tensors.count", len(tensors))):
        raise UserError(
            f"{inputs.name(path)}: split.tensors.count is {shown(all_of_them)}, but its {count} parts "
            f"have {len(tensors)} tensors; fetch them again"
        )
    return first._replace(tensors=tensors)


def _check_kind(metadata: Mapping[str, Any]) -> None:
    """Refuse files that are no whole language model."""
    architecture = text(metadata, "general.architecture")
    kind = text(metadata, "general.type", "model")
    if kind == "adapter":
        raise UserError(
            "it is a LoRA adapter, which is no model by itself: merge it into its base first, with "
            "llama-export-lora of llama.cpp"
        )
    if kind == "mmproj" or architecture == "clip":
        raise UserError(
            "it is the part of a model that reads images; give the file of its text model"
        )
    if kind != "model":
        raise UserError(f"its general.type is {shown(kind)}, and only a model can be converted")


def _place(part: Header) -> tuple[int, int]:
    """The number of a part, from 0, and how many there are."""
    try:
        count = integer(part.metadata, "split.count", 1, most=_MOST_PARTS)
        return integer(part.metadata, "split.no", 0, least=0, most=_MOST_PARTS), count
    except UserError as error:
        raise UserError(f"{inputs.name(part.path)}: {error}") from error


def _other_parts(path: Path, number: int, count: int) -> list[Path]:
    """The paths of all parts but the first.

    Raises:
      UserError: `path` is not the first, or has another name than llama.cpp gives it.
    """
    shown_name = inputs.name(path)
    match = _PART.fullmatch(path.name)
    if not match or (int(match[2]), int(match[3])) != (number + 1, count):
        raise UserError(
            f"{shown_name} is part {number + 1} of {count} of a model, but its name does not end in "
            f"-{number + 1:05}-of-{count:05}.gguf, so the others cannot be found; rename it, or merge "
            "the parts with llama-gguf-split --merge FIRST OUT"
        )
    names = [f"{match[1]}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    if number:
        raise UserError(f"{shown_name} is part {number + 1} of {count}; give the first, {names[0]}")
    return [path.with_name(name) for name in names[1:]]
