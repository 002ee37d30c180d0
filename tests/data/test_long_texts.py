"""Long texts have the same ids in pieces as at once."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data import long_texts
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.tokenizer_training import train_sentencepiece
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import sentences


def byte_level(folder):
    """A tokenizer.json like those of GPT-2 and Qwen."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(sentences(200), trainer)
    folder.mkdir()
    model.save(str(folder / "tokenizer.json"))
    return tokenizer_lib.load(folder)


@pytest.fixture(scope="module", params=["sentencepiece", "byte level"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte level":
        return byte_level(folder / "tokenizer")
    return train_sentencepiece(sentences(200), folder, 300)


@pytest.fixture(autouse=True, scope="module")
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "LONG", 200)
        patch.setattr(long_texts, "PIECE", 60)
        patch.setattr(long_texts, "_AROUND", 40)
        yield


WORDS = st.sampled_from(["so", "it", "été", "12", "x", "\n", "  ", "  \n", ".", "'s", "🙂", "数学"])


@given(
    st.lists(WORDS | st.text(max_size=4), min_size=100, max_size=200), st.sampled_from(["", " "])
)
def test_ids_are_those_of_the_whole_text(tokenizer, words, between):
    text = between.join(words)
    assert long_texts.encode(tokenizer, text).tolist() == tokenizer.encode(text)


def test_texts_of_all_lengths(tokenizer):
    prose = " ".join(sentences(60))
    assert len(list(long_texts._pieces(tokenizer, prose))) > 10  # it is cut
    texts = ["", "a", prose, prose[:100], prose[:200], prose[:201], prose[300:]]
    found = long_texts.encode_batch(tokenizer, texts)
    assert [ids.tolist() for ids in found] == tokenizer.encode_batch(texts)
    assert {ids.dtype for ids in found} == {np.dtype(np.int32)}


def test_what_cannot_be_cut(tokenizer, monkeypatch):
    text = "x" * 5000  # no space
    assert long_texts.encode(tokenizer, text).tolist() == tokenizer.encode(text)
    monkeypatch.setattr(long_texts, "MOST_AT_ONCE", 4000)
    with pytest.raises(UserError, match="a document has 5,000 characters, and this tokenizer"):
        long_texts.encode(tokenizer, text)
