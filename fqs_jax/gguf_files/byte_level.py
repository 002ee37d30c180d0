"""Byte-level BPE tokenizers of GGUF files (`tokenizer.ggml.model` gpt2).

A GGUF file has the tokens and merges, but of the pre-tokenizer only the name, `tokenizer.ggml.pre`. The rule
of a name is that in the tokenizer.json of the models for which llama.cpp made the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from fqs_jax.data.tokenizer_files import QWEN2_PATTERN
from fqs_jax.gguf_files import vocabulary
from fqs_jax.gguf_files.vocabulary import Vocabulary
from fqs_jax.huggingface.fields import shown, text
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.notes import note

# Llama 3: as Qwen2, but with up to three digits together.
_LLAMA3 = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
# Mistral Nemo: words are also divided before an upper-case letter.
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The signs of the 13 bytes that no text in UTF-8 has.
_NEVER = set(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class PreTokenizer(NamedTuple):
    """The division of text before merges are applied.

    Attributes:
      patterns: each divides the pieces of the one before; what it does not match stays together.
      nfc: True if text is first normalised to composed characters.
      whole_words: True if a piece that is a token is taken as it is, whatever the merges say.
      add_bos: True if texts begin with the BOS token, unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_OF_LLAMA3 = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_OF_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_OF_TEKKEN = PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True)
# What llama.cpp does with files that name no pre-tokenizer.
_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
PRE_TOKENIZERS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _OF_LLAMA3),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((QWEN2_PATTERN,), nfc=True),
    "deepseek-r1-qwen": PreTokenizer((QWEN2_PATTERN,)),
    "tekken": _OF_TEKKEN,
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "minerva-7b"), _OF_DIGITS),
    "gpt-2": PreTokenizer((_GPT2,)),
    "default": _DEFAULT,
}


def find(metadata: Mapping[str, Any], place: str) -> PreTokenizer:
    """The pre-tokenizer that a file names.

    Args:
      place: the file, for a note.

    Raises:
      UserError: the name is not known; to guess would change the tokens of every text.
    """
    name = text(metadata, "tokenizer.ggml.pre", "") or "default"
    if name not in PRE_TOKENIZERS:
        raise UserError(
            f"tokenizer.ggml.pre {shown(name)} is none of {', '.join(PRE_TOKENIZERS)}; take the "
            "tokenizer from the model's Hugging Face folder"
        )
    if name == "default":
        note(
            f"{place}: no pre-tokenizer is named in tokenizer.ggml.pre, so llama.cpp's default is used; "
            "if the model has another one, texts get other tokens than in its training"
        )
    return PRE_TOKENIZERS[name]


def build(metadata: Mapping[str, Any], known: Vocabulary, place: str) -> Tokenizer:
    """The tokenizer of a file, without its special tokens.

    Raises:
      UserError: the pre-tokenizer is not known, or the merges are missing or malformed.
      Exception: whatever the library raises about merges that do not fit the tokens.
    """
    rule = find(metadata, place)
    merges = [_pair(merge) for merge in vocabulary.texts(metadata, "merges")]
    table = known.table()
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if lost := len(alphabet - table.keys() - _NEVER):
        note(
            f"{place}: {lost} bytes have no token; characters that need them are left out of texts"
        )
    tokenizer = Tokenizer(BPE(vocab=table, merges=merges, ignore_merges=rule.whole_words))
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in rule.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(merge: Any) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise UserError(f"tokenizer.ggml.merges has {shown(merge)}, which is no pair of tokens")
    return left, right
