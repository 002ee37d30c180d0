"""The tokenizer_config.json of an export, which transformers 4 and 5 both read.

Version 5 names classes that version 4 does not have, and keeps further special tokens in a list under a
key that version 4 expects to be an object. Both refuse the whole tokenizer. Version 5 reads the old names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fqs_jax.huggingface import config_writing
from fqs_jax.runtime import inputs

_NEW_CLASSES = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend")


def use_known_names(folder: Path) -> None:
    """Rewrite the tokenizer_config.json of an export if it has names of version 5 only.

    Args:
      folder: the export, with its tokenizer files.
    """
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return
    raw: dict[str, Any] = inputs.read_json(path)
    result = dict(raw)
    if raw.get("tokenizer_class") in _NEW_CLASSES and (folder / "tokenizer.json").exists():
        result["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(raw.get("extra_special_tokens"), list):
        extra = result.pop("extra_special_tokens")
        result.setdefault("additional_special_tokens", extra)
    if result != raw:
        path.write_bytes(config_writing.to_json(result))
