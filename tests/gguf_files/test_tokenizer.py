"""Tokenizers from metadata, against the tokenizers that the metadata was made of."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data import tokenizer_training
from fqs_jax.data.tokenizer_files import QWEN2_PATTERN
from fqs_jax.gguf_files import byte_level, tokenizer, vocabulary
from fqs_jax.runtime.errors import UserError
from tests import gguf_models

TEXTS = (
    "Once upon a time there WASN'T a small dog; it's 12 years old, 1234567 days.",
    "naïve cafe\u0301 日本語です 🙂\n\n\n  def f(x):\n\treturn x**2 + 10.5e-3  \r\n",
    " leading, trailing  ",
    "  0 ½ ² Ⅷ ٣٤ HelloWorld don'T 'll <|end|> <tool> x<|end|>y",
    "",
)


def read(values: dict[str, Any], folder: Path) -> tokenizer_lib.Tokenizer:
    """The tokenizer of metadata, through the files that are written for it."""
    arrays = ("tokenizer.ggml.token_type", "tokenizer.ggml.scores")
    values = {
        k: np.array(v) if k in arrays and isinstance(v, list) else v for k, v in values.items()
    }
    folder.mkdir(exist_ok=True)
    tokenizer.write(values, vocabulary.read(values), folder, "it.gguf")
    return tokenizer_lib.load(folder)


# Byte-level BPE --------------------

# The pre-tokenizers in the tokenizer.json of one model for each name, as its authors published it.
PUBLISHED = {
    "llama-bpe": (QWEN2_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|"), None),
    "qwen2": (QWEN2_PATTERN, normalizers.NFC()),
    "gpt-2": (None, None),
    "smollm": ("digits", None),
}


def published(name: str) -> tokenizers.Tokenizer:
    """A trained byte-level tokenizer with a model's own pre-tokenizer."""
    pattern, normalizer = PUBLISHED[name]
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    made.normalizer = normalizer
    if pattern is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif pattern == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.add_tokens(["<tool>"])
    return made


@pytest.mark.parametrize("name", PUBLISHED)
def test_byte_level_ids_are_those_of_the_published_rule(tmp_path, name):
    theirs = published(name)
    raw = json.loads(theirs.to_str())
    tokens = [theirs.id_to_token(i) or "" for i in range(theirs.get_vocab_size())]
    values = gguf_models.metadata("llama") | {
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [*tokens, "[PAD]"],
        "tokenizer.ggml.token_type": [3, *[1] * (len(tokens) - 2), 4, 5],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in raw["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
    }
    ours = read(values, tmp_path)
    for text in TEXTS:
        expected = theirs.encode(text).ids
        assert ours.encode(text) == expected, text
        assert ours.decode(expected) == theirs.decode(expected), text
    assert ours.vocab_size == len(tokens)  # without the filling of the table


def test_rules_are_those_of_transformers():
    """Names that transformers knows too divide every text as there."""
    theirs = pytest.importorskip(
        "transformers.integrations.gguf.gguf_tokenizer_mapping"
    ).GGUF_PRE_TOKENIZER_SPLITS
    names = theirs.keys() & byte_level.PRE_TOKENIZERS.keys()
    assert {"llama-bpe", "qwen2", "tekken"} <= names
    for name in names:
        [ours] = byte_level.PRE_TOKENIZERS[name].patterns
        split, expected = (
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
            for pattern in (ours, theirs[name])
        )
        for text in TEXTS:
            assert split.pre_tokenize_str(text) == expected.pre_tokenize_str(text), (name, text)


def test_text_begins_and_ends_as_the_file_says(tmp_path):
    cases: dict[str, dict[str, Any]] = {
        "neither": {"add_bos_token": False},
        "bos": {"bos_token_id": 258, "add_bos_token": None},  # as usual for Llama 3
        "both": {"bos_token_id": 258, "add_bos_token": True, "add_eos_token": True},
    }
    frames = {"neither": ([], []), "bos": ([258], []), "both": ([258], [257])}
    for name, changes in cases.items():
        keys = {f"tokenizer__ggml__{key}": value for key, value in changes.items()}
        folder = tmp_path / name
        loaded = read(gguf_models.metadata("llama", **keys), folder)
        before, after = frames[name]
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert theirs.encode("he").ids == [*before, 256, *after]
        assert loaded.opening == before
        pair = theirs.encode("he", "he").ids
        assert pair == [*before, 256, *after, *before, 256, *after]


def test_bytes_without_a_token_are_noted(tmp_path, capfd):
    tokens = [token for token in gguf_models.TOKENS if token not in "é"]
    kinds = [1] * 256 + [3, 3] + [5] * 41
    values = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": kinds}
    values |= {"tokenizer__ggml__eos_token_id": 256}
    read(gguf_models.metadata("llama", **values), tmp_path)
    assert "1 bytes have no token" in capfd.readouterr().err


def test_no_pre_tokenizer_is_noted(tmp_path, capfd):
    read(gguf_models.metadata("llama", tokenizer__ggml__pre=None), tmp_path)
    assert "no pre-tokenizer is named" in capfd.readouterr().err


# SentencePiece --------------------


def pieces(folder: Path, size: int = 380, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A trained SentencePiece model, and the metadata that llama.cpp makes of it."""
    tokenizer_training.train_sentencepiece(
        [line for text in TEXTS * 5 for line in text.splitlines() if line], folder, size, **options
    )
    model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ids = range(model.get_piece_size())
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in ids
    ]
    keys = {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__pre": "default",
        "tokenizer__ggml__merges": None,
        "tokenizer__ggml__add_bos_token": None,
        "tokenizer__ggml__tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer__ggml__scores": [model.get_score(i) for i in ids],
        "tokenizer__ggml__token_type": kinds,
        "tokenizer__ggml__bos_token_id": 1,
        "tokenizer__ggml__eos_token_id": 2,
        "tokenizer__ggml__unknown_token_id": 0,
    }
    return model, gguf_models.metadata("llama", **keys)


def test_sentencepiece_ids_are_those_of_its_library(tmp_path):
    model, values = pieces(tmp_path / "made")
    values["tokenizer.ggml.tokens"] += ["<|end|>", "<tool>"]
    values["tokenizer.ggml.scores"] += [0.0, 0.0]
    values["tokenizer.ggml.token_type"] += [3, 4]
    ours = read(values, tmp_path / "out")
    for text in (*TEXTS[:3], "unseen: Ω ﷺ zzzqqq", "▁", "  a   b"):
        assert ours.encode(text) == model.encode(text), text
        assert ours.decode(model.encode(text)) == model.decode(model.encode(text)), text
    assert ours.opening == [1] and ours.end_ids == {2}
    size = model.get_piece_size()
    assert size in ours.encode("a<|end|>b") and size + 1 in ours.encode("a<tool>b")

    plain = read(values | {"tokenizer.ggml.add_space_prefix": False}, tmp_path / "plain")
    assert plain.decode(plain.encode("the dog")) == "the dog"
    assert plain.encode(" the dog") == model.encode("the dog")


def test_sentencepiece_without_bytes_has_the_unknown_token(tmp_path, capfd):
    model, values = pieces(tmp_path / "made", 120, byte_fallback=False)
    ours = read(values, tmp_path / "out")
    assert ours.encode("the Ω dog") == model.encode("the Ω dog") and 0 in ours.encode("Ω")
    assert "not every byte has a token" in capfd.readouterr().err


# What is refused --------------------


def spoiled(name: str, value: Any) -> dict[str, Any]:
    return {f"tokenizer__ggml__{name}": value}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (spoiled("model", "bert"), "tokenizer.ggml.model 'bert' is none of gpt2, llama"),
        (spoiled("model", None), "'tokenizer.ggml.model' is missing"),
        (spoiled("pre", "gemma9"), "tokenizer.ggml.pre 'gemma9' is none of"),
        (spoiled("pre", 3), "tokenizer.ggml.pre should be a text"),
        (spoiled("tokens", None), "tokenizer.ggml.tokens is missing"),
        (spoiled("tokens", "abc"), "tokens should be a list of texts, found 'abc'"),
        (
            spoiled("tokens", np.arange(3)),
            "tokens should be a list of texts, found a list of 3 int64",
        ),
        (
            spoiled("tokens", gguf_models.TOKENS[:-1]),
            "token_type has 300 entries, but there are 299",
        ),
        (
            spoiled("tokens", ["!", *gguf_models.TOKENS[:-1]]),
            "tokens has '!' twice, with ids 0 and 1",
        ),
        (spoiled("token_type", [1] * 299 + [9]), "token_type has 9, which is no kind"),
        (spoiled("token_type", "x"), "token_type should be a list of numbers"),
        (spoiled("merges", None), "tokenizer.ggml.merges is missing"),
        (spoiled("merges", ["he"]), "merges has 'he', which is no pair"),
        (spoiled("merges", ["zz zz"]), "the tokenizer in its metadata cannot be made .*zz"),
        (
            spoiled("eos_token_id", 300),
            "eos_token_id is 300, but the last of the tokens has id 299",
        ),
        (spoiled("eos_token_id", -1), "eos_token_id should be at least 0"),
        (spoiled("eos_token_id", "2"), "eos_token_id should be a number"),
        (spoiled("add_bos_token", 1), "add_bos_token should be true or false, found 1"),
        (spoiled("add_bos_token", True), "add_bos_token is true, but .*bos_token_id is missing"),
        ({"tokenizer__chat_template": 7}, "tokenizer.chat_template should be a text"),
        ({"tokenizer__chat_template__a/../b": "x"}, "chat_template has the name 'a/../b'"),
        ({"tokenizer__chat_template__a/b": "x"}, "chat_template has the name 'a/b'"),
    ],
)
def test_metadata_that_cannot_be(tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected) as caught:
        read(gguf_models.metadata("llama", **changes), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (spoiled("scores", None), "tokenizer.ggml.scores is missing"),
        (spoiled("scores", [0.0]), "scores has 1 entries, but there are 300 tokens"),
        (spoiled("scores", [np.nan] * 300), "scores has NaN or infinite"),
        (spoiled("add_space_prefix", "no"), "add_space_prefix should be true or false"),
        (spoiled("tokens", [f"{i}" * 9000 for i in range(300)]), "pieces that are absurdly long"),
    ],
)
def test_pieces_that_cannot_be(tmp_path, changes, expected):
    values = (
        spoiled("model", "llama") | spoiled("scores", [-float(i) for i in range(300)]) | changes
    )
    with pytest.raises(UserError, match=expected) as caught:
        read(gguf_models.metadata("llama", **values), tmp_path)
    assert not re.search("\n", str(caught.value))
