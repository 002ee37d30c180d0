"""The files of a tokenizer: which of them is read, and what one looks like that cannot be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from fqs_jax.data import added_tokens
from fqs_jax.data import tokenizer_library as library
from fqs_jax.data.added_tokens import Listed
from fqs_jax.data.tokenizer_backends import Backend, Fast, SentencePiece
from fqs_jax.data.tokenizer_guard import Guarded, probe
from fqs_jax.runtime import inputs
from fqs_jax.runtime.errors import UserError, printable
from fqs_jax.runtime.notes import note

# tokenizer_config.json of every tokenizer that fqs_jax trains.
TRAINED = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}
# Qwen2's pre-tokenizer, which splits text before byte-level BPE: contractions, words with one
# leading sign, single digits, signs, line breaks, spaces.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


_JSON, _MODEL = "a tokenizer.json", "a SentencePiece model"
_MOST_BYTES = 1 << 28  # of a tokenizer file; the largest known ones have 30 MB


def read_backend(
    folder: Path, settings: Mapping[str, Any], model_config: Mapping[str, Any]
) -> Backend:
    """The tokenizer of a folder: of tokenizer.json, else tokenizer.model, else Qwen2's two text files.

    A file that is not a tokenizer is skipped with a note on stderr, and the next one is read.

    Args:
      settings: of tokenizer_config.json and special_tokens_map.json.
      model_config: config.json.

    Raises:
      UserError: there is none, or none can be read.
    """
    listed = added_tokens.read(folder, settings)
    readers: dict[str, Callable[[], Backend]] = {
        "tokenizer.json": lambda: _read_json(folder / "tokenizer.json", listed, settings),
        "tokenizer.model": lambda: _read_model(folder / "tokenizer.model", listed, settings),
        "vocab.json": lambda: _read_qwen2(folder, listed, settings, model_config),
    }
    refused: UserError | None = None
    for name, reader in readers.items():
        if not (folder / name).exists():
            continue
        if name == "vocab.json" and not (folder / "merges.txt").exists():
            continue
        try:
            backend = Guarded(reader(), folder / name)
            with library.silence():
                probe(backend)
        except UserError as error:
            refused = refused or error
            continue
        refused = refused or _no_model(folder / "tokenizer.model")
        if refused is not None:
            reason = str(refused)
            note(f"{reason}; {name} is used", once=reason.replace(str(folder), ""))
        return backend
    if refused is not None:
        raise refused
    raise UserError(
        f"{inputs.name(folder)} has no tokenizer: expected tokenizer.model, tokenizer.json, or "
        "Qwen2's vocab.json and merges.txt"
    )


def _no_model(path: Path) -> UserError | None:
    """The error about a tokenizer.model that is another kind of file, if it is one."""
    try:
        with inputs.open_file(path) as file:
            start = file.read(256)
    except (UserError, OSError):
        return None
    looks = _looks(start)
    return UserError(f"{_refusal(path, _MODEL)} but {looks}") if looks else None


def _read_json(path: Path, listed: Sequence[Listed], settings: Mapping[str, Any]) -> Backend:
    content = inputs.read_bytes(path, _MOST_BYTES)
    with library.silence(), library.errors(_refusal(path, _JSON), _looks(content)):
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
        library.check_replacements(tokenizer, path)
        backend = Fast(tokenizer, listed, _plain_specials(settings), _cleans_up(settings))
    for token, token_id in listed:
        if token_id is not None and (given := backend.id_of(token.content)) != token_id:
            note(
                f"{inputs.name(path)} gives {printable(token.content, 60)!r} the id {given}, the "
                f"files beside it {token_id}; {given} is used, as by transformers"
            )
    return backend


def _read_model(path: Path, listed: Sequence[Listed], settings: Mapping[str, Any]) -> Backend:
    content = inputs.read_bytes(path, _MOST_BYTES)
    with library.silence(), library.errors(_refusal(path, _MODEL), _looks(content)):
        return SentencePiece(
            content,
            listed,
            _plain_specials(settings),
            legacy=bool(settings.get("legacy", True)),
            clean_up=_cleans_up(settings),
        )


def _plain_specials(settings: Mapping[str, Any]) -> bool:
    """True if the spelling of a special token in a text is plain text."""
    return settings.get("split_special_tokens") is True or settings == TRAINED


def _cleans_up(settings: Mapping[str, Any]) -> bool:
    return settings.get("clean_up_tokenization_spaces") is True


def _looks(content: bytes) -> str:
    """A guess at the kind of a file that is no tokenizer, or nothing."""
    start = content[:256].lstrip().lower()
    if not start:
        return "an empty file; fetch it again"
    if start.startswith(inputs.LFS_POINTER):
        return "a Git LFS pointer; fetch the file itself (git lfs pull)"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page; download the file itself"
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content[:256]):
        return "a tiktoken file; convert it with transformers to tokenizer.json"
    return ""


def _refusal(path: Path, kind: str) -> str:
    return f"{inputs.name(path)} is not {kind} that can be read"


def _read_qwen2(
    folder: Path,
    listed: Sequence[Listed],
    settings: Mapping[str, Any],
    model_config: Mapping[str, Any],
) -> Backend:
    """Qwen2's byte-level BPE from its two text files."""
    kind = settings.get("tokenizer_class") or model_config.get("model_type") or "unknown"
    if not str(kind).lower().startswith("qwen2"):
        raise UserError(
            f"{inputs.name(folder)} has vocab.json and merges.txt of a {printable(str(kind), 60)} "
            "tokenizer; only Qwen2's can be read from these files: save it with transformers as "
            "tokenizer.json"
        )
    with (
        library.silence(),
        library.errors(f"{inputs.name(folder)}: vocab.json or merges.txt is damaged"),
    ):
        model = tokenizers.models.BPE(*_vocabulary_and_merges(folder))
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = tokenizers.normalizers.NFC()
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), "isolated")
        bytes_ = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, bytes_])
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        backend = Fast(tokenizer, listed, _plain_specials(settings), _cleans_up(settings))
    for token, token_id in listed:
        if token_id is not None and (given := tokenizer.token_to_id(token.content)) != token_id:
            raise UserError(
                f"{inputs.name(folder)}: added token {printable(token.content, 60)!r} should have "
                f"id {token_id}, the vocabulary gives it {given}; vocab.json belongs to another "
                "model"
            )
    return backend


def _vocabulary_and_merges(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocabulary = json.loads(inputs.read_text(folder / "vocab.json", _MOST_BYTES))
    merges = []
    for line in inputs.read_text(folder / "merges.txt", _MOST_BYTES).split("\n"):
        if line and not line.startswith("#version"):
            left, right = line.rstrip("\r").split(" ")
            merges.append((left, right))
    return vocabulary, merges
