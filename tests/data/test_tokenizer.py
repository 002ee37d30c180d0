"""Tokenizers, against transformers and between the formats one vocabulary comes in."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf_tokenizers
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data import tokenizer_training
from fqs_jax.runtime.errors import UserError

LINES = [
    "Once upon a time there was a little cat, and the cat had 12 hats.",
    "  Two  spaces, a\ttab, and an é.",
    "the little hat and the little cat sat; the cat saw the hat",
] * 10

# Text in pieces that tokenizers are known to disagree about.
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            [" ", "  ", "\n", "\r\n\n", "\t", " \n ", "don't", "'LL", "12345", "x_1 = {", "é", "é"]
            + [
                "ﬁ",
                "日本語",
                "👩‍👩‍👧",
                "\u00a0",
                "\u3000",
                "<",
                "|>",
                "im_end",
                " word",
                "½²",
                "Ⅷ",
                "ſ's",
            ]
        ),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    tokenizer_training.train_sentencepiece(LINES, folder, 320, user_defined_symbols=["<think>"])
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def with_settings(folder: Path, tmp_path: Path, **settings: Any) -> tokenizer_lib.Tokenizer:
    """The tokenizer of a copy of `folder` whose tokenizer_config.json is `settings`."""
    shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
    write_json(tmp_path / "copy" / "tokenizer_config.json", settings)
    return tokenizer_lib.load(tmp_path / "copy")


# ---- SentencePiece


def test_training_twice_gives_the_same_bytes(tmp_path, trained):
    again = tokenizer_training.train_sentencepiece(
        iter(LINES), tmp_path / "new" / "folder", 320, user_defined_symbols=["<think>"]
    )
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "new" / "folder" / name).read_bytes() == (trained / name).read_bytes()
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2
    assert again.vocab_size == 320


def test_unigram_training_is_deterministic(tmp_path):
    for name in ("a", "b"):
        tokenizer_training.train_sentencepiece(LINES, tmp_path / name, 290, model_type="unigram")
    a, b = ((tmp_path / name / "tokenizer.model").read_bytes() for name in ("a", "b"))
    assert a == b


def test_trained_tokenizer(trained):
    tokenizer = tokenizer_lib.load(trained)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.add_bos and tokenizer.vocab_size == 320
    think = tokenizer.id_of("<think>")
    assert think is not None and tokenizer.encode("a<think>b").count(think) == 1
    assert tokenizer.id_of("</s>") == 2
    assert tokenizer.id_of("no such piece") is None
    # Spelled out in a text they are text.
    assert not {1, 2} & set(tokenizer.encode("<s>one</s>"))
    assert tokenizer.decode(tokenizer.encode("<s>one</s>")) == "<s>one</s>"
    assert 1 not in tokenizer.encode("text") and 2 not in tokenizer.encode("text")
    digits = [tokenizer.encode(digit)[-1] for digit in "12"]
    assert tokenizer.encode("12")[-2:] == digits


@given(text=TEXTS)
def test_trained_tokenizer_returns_what_it_got(trained, text):
    tokenizer = tokenizer_lib.load(trained)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_batch_decode_and_odd_ids(trained):
    tokenizer = tokenizer_lib.load(trained)
    assert tokenizer.encode_batch(LINES) == [tokenizer.encode(line) for line in LINES]
    assert tokenizer.encode_batch([]) == [] and tokenizer.encode("") == []
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode(np.array([1, *ids, 2, 319 + 1, 99999, -1])) == "the cat"
    assert tokenizer.decode([]) == ""
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


def test_long_lines_are_learned_from(tmp_path):
    tokenizer = tokenizer_training.train_sentencepiece(["wordy " * 20000], tmp_path, 270)
    assert len(tokenizer.encode("wordy wordy")) == 2


def test_tiny_vocabulary_without_bytes(tmp_path):
    tokenizer = tokenizer_training.train_sentencepiece(
        ["abba ab"] * 9, tmp_path, 8, byte_fallback=False
    )
    assert tokenizer.vocab_size == 8
    assert tokenizer.decode(tokenizer.encode("ab ba")) == "ab ba"


# ---- Special tokens


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 2, 2, True)),  # what the model file says, and Llama's convention
        ({"add_bos_token": False}, (1, 2, 2, False)),
        ({"add_bos_token": None}, (1, 2, 2, True)),
        ({"bos_token": "</s>", "eos_token": "<s>"}, (2, 1, 1, True)),
        ({"bos_token": {"content": "</s>", "lstrip": False}}, (2, 2, 2, True)),
        ({"pad_token": "<unk>"}, (1, 2, 0, True)),
        ({"pad_token": None}, (1, 2, 2, True)),
        ({"bos_token": None}, (None, 2, 2, False)),
        ({"eos_token": None}, (1, None, 0, True)),
        ({"eos_token": "not in the vocabulary"}, (1, 2, 2, True)),
        (
            {"eos_token": "<end>", "added_tokens_decoder": {"320": {"content": "<end>"}}},
            (1, 320, 320, True),
        ),
    ],
)
def test_special_tokens(trained, tmp_path, settings, expected):
    t = with_settings(trained, tmp_path, **settings)
    assert (t.bos_id, t.eos_id, t.pad_id, t.add_bos) == expected


def test_special_tokens_from_the_other_files(trained, tmp_path):
    shutil.copy(trained / "tokenizer.model", tmp_path)
    write_json(tmp_path / "config.json", {"eos_token_id": [5, 6], "pad_token_id": -1})
    t = tokenizer_lib.load(tmp_path)
    assert (t.bos_id, t.eos_id, t.pad_id) == (1, 5, 5)
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": "<s>", "pad_token": "<pad>"})
    write_json(tmp_path / "added_tokens.json", {"<pad>": 330})
    t = tokenizer_lib.load(tmp_path)
    assert (t.eos_id, t.pad_id, t.vocab_size) == (1, 330, 331)
    assert t.decode([330, 325]) == ""


def test_mistrals_two_files_agree(shared, tmp_path):
    """tokenizer.json, converted by its authors, is an independent reading of tokenizer.model."""
    folder = shared / "real" / "configs" / "Mistral-7B-v0.1"
    shutil.copy(folder / "tokenizer.json", tmp_path)
    pieces, fast = tokenizer_lib.load(folder), tokenizer_lib.load(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    fast = tokenizer_lib.load(tmp_path)
    assert (pieces.bos_id, pieces.eos_id, pieces.add_bos, pieces.vocab_size) == (1, 2, True, 32000)
    assert (fast.bos_id, fast.eos_id, fast.add_bos, fast.vocab_size) == (1, 2, True, 32000)
    assert pieces.encode("---") == [11940]
    text = shared / "real" / "text"
    samples = (text / "tinystories_valid_794k.txt").read_text()[:20000].split("\n")
    with (text / "stacks_project_part.jsonl").open() as lines:
        samples += [json.loads(next(lines))["text"][:5000] for _ in range(4)]
    assert pieces.encode_batch(samples) == fast.encode_batch(samples)
    for sample in samples:
        assert pieces.decode(pieces.encode(sample)) == sample
        assert fast.decode(fast.encode(sample)) == sample


# ---- tokenizer.json


def fast_folder(folder: Path, adds_bos: bool) -> Path:
    vocab = {"<s>": 0, "</s>": 1, "[UNK]": 2, "the": 3, "cat": 4, "a": 5}
    tokenizer = hf_tokenizers.Tokenizer(hf_tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = hf_tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if adds_bos:
        tokenizer.post_processor = hf_tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("adds_bos", [True, False])
def test_fast_tokenizer(tmp_path, adds_bos):
    folder = fast_folder(tmp_path, adds_bos)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    t = tokenizer_lib.load(folder)
    assert (t.bos_id, t.eos_id, t.pad_id, t.add_bos, t.vocab_size) == (0, 1, 1, adds_bos, 6)
    # Neither BOS nor the file's truncation and padding.
    assert t.encode("the cat the cat") == [3, 4, 3, 4]
    assert t.encode_batch(["the", "a cat cat"]) == [[3], [5, 4, 4]]
    assert t.decode([0, 3, 4, 77, 1]) == "the cat"
    assert t.id_of("cat") == 4 and t.id_of("dog") is None
    write_json(
        folder / "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": not adds_bos}
    )
    assert tokenizer_lib.load(folder).add_bos is not adds_bos


# ---- Qwen2's two text files


def tiny_qwen2(folder: Path) -> Path:
    alphabet = sorted(hf_tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = ["t h", "th e", "Ġ the", "Ġ c", "a t", "Ġc at", "Ġ Ġ", "Ċ Ċ", "' s", "Ã ©"]
    vocab = [*alphabet, *(merge.replace(" ", "") for merge in merges)]
    write_json(folder / "vocab.json", {piece: i for i, piece in enumerate(vocab)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = ["<|endoftext|>", "<|im_end|>"]
    write_json(folder / "added_tokens.json", {s: len(vocab) + i for i, s in enumerate(special)})
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "added_tokens_decoder": {
            str(len(vocab) + i): {"content": s, "special": True} for i, s in enumerate(special)
        },
    }
    write_json(folder / "tokenizer_config.json", settings)
    return folder


@pytest.fixture(scope="module")
def qwen2_pair(tmp_path_factory):
    """A folder in Qwen2's layout read by us and by transformers."""
    transformers = pytest.importorskip("transformers")
    folder = tiny_qwen2(tmp_path_factory.mktemp("qwen2"))
    return tokenizer_lib.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


@given(text=TEXTS)
def test_qwen2_equals_transformers(qwen2_pair, text):
    ours, theirs = qwen2_pair
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_qwen2_special_tokens(qwen2_pair):
    ours, theirs = qwen2_pair
    assert (ours.bos_id, ours.add_bos) == (None, False)
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.vocab_size == len(theirs)
    text = "the cat<|im_end|>\n<|endoftext|>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == "the cat\n"


@pytest.fixture(scope="module")
def real_qwen2_pair(shared):
    transformers = pytest.importorskip("transformers")
    folder = shared / "real" / "configs" / "Qwen2.5-0.5B-Instruct"
    return tokenizer_lib.load(folder), transformers.AutoTokenizer.from_pretrained(folder)


@given(text=TEXTS)
def test_real_qwen2_equals_transformers(real_qwen2_pair, text):
    ours, theirs = real_qwen2_pair
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids)


def test_real_qwen2_on_real_text(real_qwen2_pair, shared, tmp_path):
    ours, theirs = real_qwen2_pair
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id) == (
        151665,
        None,
        151645,
        151643,
    )
    text = shared / "real" / "text"
    samples = [(text / "tinystories_valid_794k.txt").read_text()[:20000]]
    with (text / "stacks_project_part.jsonl").open() as lines:
        samples += [json.loads(next(lines))["text"][:5000] for _ in range(4)]
    samples += ["<|im_start|>user\nHi<tool_call>{}</tool_call><|im_end|>"]
    ids = ours.encode_batch(samples)
    assert ids == theirs(samples, add_special_tokens=False).input_ids
    # The same through the file that transformers saves.
    theirs.save_pretrained(tmp_path)
    saved = tokenizer_lib.load(tmp_path)
    assert not (tmp_path / "vocab.json").exists() and saved.encode_batch(samples) == ids
    assert (saved.bos_id, saved.eos_id, saved.pad_id) == (None, 151645, 151643)
    assert not saved.add_bos


# ---- Bad folders


def test_nothing_to_read(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="has no tokenizer: expected tokenizer.model"):
            tokenizer_lib.load(folder)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"version https://git-lfs", b"{}"])
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        tokenizer_lib.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_truncated_model(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    content = (trained / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="tokenizer.model"):
        tokenizer_lib.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", "vocab.json or merges.txt is damaged"),
        ("merges.txt", "#version: 0.2\nnot here\n", "vocab.json or merges.txt is damaged"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", '{"tokenizer_class": "GPT2Tokenizer"}', "GPT2Tokenizer"),
        ("added_tokens.json", '{"<|im_end|>": 999}', "should have id 999"),
        ("added_tokens.json", '{"<|im_end|>": "x"}', "added tokens is malformed"),
        ("added_tokens.json", "[]", "should hold a JSON object"),
    ],
)
def test_damaged_qwen2_files(tmp_path, name, content, message):
    tiny_qwen2(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        tokenizer_lib.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_training_errors(tmp_path):
    with pytest.raises(UserError) as caught:
        tokenizer_training.train_sentencepiece(["abc abc"], tmp_path, 260)
    few = re.search(
        r"this text needs at least (\d+); set data.tokenizer_pieces$", str(caught.value)
    )
    with pytest.raises(UserError) as caught:
        tokenizer_training.train_sentencepiece(["abc abc"], tmp_path, 5000)
    many = re.search(
        r"this text gives (\d+) at most; set data.tokenizer_pieces$", str(caught.value)
    )
    assert few and many
    for size in (few[1], many[1]):  # what the lines say is allowed
        made = tokenizer_training.train_sentencepiece(["abc abc"], tmp_path / size, int(size))
        assert made.vocab_size == int(size)


def test_nothing_is_written_if_training_fails(tmp_path):
    with pytest.raises(UserError, match="tokenizer of 300 pieces: the text is empty"):
        tokenizer_training.train_sentencepiece([], tmp_path / "x", 300)
    assert not (tmp_path / "x").exists()


def test_text_that_the_vocabulary_cannot_write_is_noted(tmp_path, capfd):
    tokenizer = tokenizer_training.train_sentencepiece(
        ["abba ab"] * 9, tmp_path, 8, byte_fallback=False
    )
    for text in ("ab  ba\nab", "", " "):
        tokenizer.note_unknown([text])
    assert capfd.readouterr().err == ""
    tokenizer.note_unknown(["abba", "other"])
    assert "does not know 56% of these characters, such as 'o'" in capfd.readouterr().err
