"""The tokenizer of a GGUF file as the files of a Hugging Face folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from fqs_jax.data import tokenizer_library
from fqs_jax.gguf_files import byte_level, sentence_pieces
from fqs_jax.gguf_files.vocabulary import Vocabulary
from fqs_jax.huggingface import config_writing
from fqs_jax.huggingface.fields import integer, shown, switch, text
from fqs_jax.runtime import files
from fqs_jax.runtime.errors import UserError

_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # becomes the name of a file


def write(metadata: Mapping[str, Any], known: Vocabulary, folder: Path, place: str) -> None:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and the chat templates.

    Args:
      place: the file, for notes.

    Raises:
      UserError: the tokenizer is not supported, or its parts do not fit together. The message has no file.
    """
    with tokenizer_library.errors("the tokenizer in its metadata cannot be made"):
        tokenizer = _build(metadata, known, place)
        files.write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    _write_json(folder / "tokenizer_config.json", _settings(metadata, known))
    _write_json(folder / "generation_config.json", token_ids(known, all_ends=True))
    for name, template in _chat_templates(metadata).items():
        path = folder / "chat_template.jinja"
        if name:
            path = folder / "additional_chat_templates" / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        files.write_text(path, template)


def token_ids(known: Vocabulary, all_ends: bool = False) -> dict[str, Any]:
    """The ids of special tokens, as in config.json; null for a token that does not exist.

    Args:
      all_ends: eos_token_id is a list if several tokens end a text, as in generation_config.json.
    """
    ends = known.end_ids
    first = ends[0] if ends else None
    return {
        "bos_token_id": known.ids.get("bos"),
        "eos_token_id": ends if all_ends and len(ends) > 1 else first,
        "pad_token_id": known.ids.get("pad"),
    }


def _build(metadata: Mapping[str, Any], known: Vocabulary, place: str) -> Tokenizer:
    adds_bos = known.model == "llama"
    if known.model == "llama":
        tokenizer = sentence_pieces.build(metadata, known, place)
    else:
        tokenizer = byte_level.build(metadata, known, place)
        adds_bos = byte_level.find(metadata, place).add_bos
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    for kind in (*special, TokenType.USER_DEFINED):
        tokens = [token for _, token in known.of_kind(kind)]
        is_special = kind in special
        added = [AddedToken(token, special=is_special, normalized=False) for token in tokens]
        tokenizer.add_tokens(added)
    tokenizer.post_processor = _frame(
        _frame_token(metadata, known, "bos", adds_bos), _frame_token(metadata, known, "eos", False)
    )
    return tokenizer


def _frame_token(
    metadata: Mapping[str, Any], known: Vocabulary, name: str, default: bool
) -> tuple[str, int] | None:
    """The token that is added to each text, at its start (bos) or its end (eos); None = no token.

    Raises:
      UserError: the file says that one is added, and does not have it.
    """
    key = f"tokenizer.ggml.add_{name}_token"
    if not switch(metadata, key, default):
        return None
    spelling = known.spelling(name)
    if spelling:
        return spelling, known.ids[name]
    if metadata.get(key):
        raise UserError(f"{key} is true, but tokenizer.ggml.{name}_token_id is missing")
    return None


def _frame(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> TemplateProcessing:
    """The step that adds tokens around a text, or around both texts of a pair."""
    before, after = ([token[0]] if token else [] for token in (bos, eos))
    second = [*(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    single = [*before, "$A", *after]
    special = list({token: None for token in (bos, eos) if token})
    return TemplateProcessing(single=single, pair=[*single, *second], special_tokens=special)


def _settings(metadata: Mapping[str, Any], known: Vocabulary) -> dict[str, Any]:
    named = {f"{name}_token": known.spelling(name) for name in ("bos", "eos", "unk", "pad")}
    context = f"{text(metadata, 'general.architecture')}.context_length"
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: spelling for key, spelling in named.items() if spelling},
        "clean_up_tokenization_spaces": False,
        "model_max_length": integer(metadata, context),
    }


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; the name of the usual one is empty."""
    found = {}
    for key in metadata:
        name = key.removeprefix(_TEMPLATE)
        if name == key or (name and not name.startswith(".")):
            continue
        if name and not _TEMPLATE_NAME.fullmatch(name[1:]):
            raise UserError(
                f"{_TEMPLATE} has the name {shown(name[1:])}; only letters, digits, - and _ can be in "
                "the name of its file"
            )
        found[name[1:]] = text(metadata, key)
    return found


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_bytes(config_writing.to_json(dict(value)))
