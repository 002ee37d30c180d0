"""A GGUF file to a Hugging Face folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fqs_jax import huggingface
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.gguf_files import architectures, parts, tokenizer, vocabulary, weights
from fqs_jax.gguf_files.header import Header
from fqs_jax.huggingface import config_writing, finite, model_card
from fqs_jax.model.config import ModelConfig
from fqs_jax.runtime import files, inputs
from fqs_jax.runtime.errors import UserError


def convert(
    file: str | Path, out: str | Path, dtype: str = "float32", max_shard_bytes: float = 5e9
) -> None:
    """Write a GGUF file as a stock Hugging Face folder, which appears complete or not at all.

    Args:
      file: the file, or the first of its parts.
      out: a folder that does not exist yet or is empty.
      dtype: type of the weights; only float32 holds the values of every quantised type exactly.
      max_shard_bytes: weights larger than this are split over several files.

    Raises:
      UserError: the file is no language model of a known architecture, is damaged, or has values that
        are NaN, infinite or too large for `dtype`; or `out` is taken or cannot be written.
    """
    file = Path(file)
    files.check_free(out)  # before minutes of work
    model = parts.read_model(file)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = _write_source(model, folder, dtype)
        row = architectures.find(model.metadata)
        params = weights.read_params(model, config, row.permuted, dtype)
        huggingface.export(
            params,
            config,
            out,
            source=folder,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            base=_base(model),
        )


def _write_source(model: Header, folder: Path, dtype: str) -> ModelConfig:
    """Write all files of a Hugging Face folder but the weights, and read them as any other folder.

    Raises:
      UserError: the metadata cannot be used, or not by this package.
    """
    shown_name = inputs.name(model.path)
    factors = model.tensors.get(architectures.ROPE_FACTORS)
    try:
        values = None if factors is None else weights.read_values(factors)
        if values is not None:
            finite.check_finite(values, f"tensor {architectures.ROPE_FACTORS}")
        known = vocabulary.read(model.metadata)
        ids = tokenizer.token_ids(known)
        raw = architectures.make_config(model, values, dtype, ids)
        (folder / "config.json").write_bytes(config_writing.to_json(raw))
        config = huggingface.read_config(folder)
        tokenizer.write(model.metadata, known, folder, shown_name)
        tokenizer_lib.load(folder).for_table(config.vocab_size, "its metadata")
    except UserError as error:
        # The folder is temporary: what is wrong in it is wrong in the file.
        message = str(error).replace(f"{folder}/", "").replace(str(folder), "its metadata")
        raise UserError(f"{shown_name}: {message}") from error
    return config


def _base(model: Header) -> str:
    """The origin of the exported folder, for its model card."""
    said = {
        "named": model.metadata.get("general.name"),
        "under the licence": model.metadata.get("general.license"),
    }
    return ", ".join([f"the GGUF file {model_card.code(model.path.name)}", *_told(said)])


def _told(said: Mapping[str, Any]) -> list[str]:
    return [f"{how} {model_card.code(what)}" for how, what in said.items() if isinstance(what, str)]
