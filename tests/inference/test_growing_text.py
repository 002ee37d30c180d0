"""Texts that grow token by token, against decoding all tokens anew."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data import tokenizer_training
from fqs_jax.inference.growing_text import GrowingText
from tests.tiny_runs import sentences

TEXT = "naïve 日本語 \U0001f642\U0001f642 é\n\n x  two  spaces\t123,456"


@pytest.fixture(scope="module", params=["SentencePiece with bytes", "byte-level BPE"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "SentencePiece with bytes":
        return tokenizer_training.train_sentencepiece(sentences(200), folder, 320)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(sentences(200), trainer)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer_lib.load(folder)


def check(tokenizer, ids):
    for begun in (0, len(ids) // 2):
        growing = GrowingText(tokenizer, ids[:begun])
        for count, token in enumerate(ids[begun:], start=begun + 1):
            assert growing.append(token) == tokenizer.decode(ids[:count])


def test_a_growing_text_is_the_text_of_all_tokens(tokenizer):
    check(tokenizer, tokenizer.encode(TEXT))

    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    def any_tokens(ids):  # broken characters, special tokens inside runs of bytes, lone spaces
        check(tokenizer, ids)

    any_tokens()
