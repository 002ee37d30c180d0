"""Folders of tokenizers made at random, in every layout, against transformers."""

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from fqs_jax.data import tokenizer as tokenizer_lib

transformers = pytest.importorskip("transformers")

LINES = [
    "Once upon a time there was a little cat, and the cat had 12 hats.",
    "Two  spaces, a\ttab, an é, and don't forget: the dog 's house ?",
    "the little hat and the little cat sat; user assistant word words swordfish",
] * 10
CONTENTS = ["<|im_start|>", "<|im_end|>", "<tool>", "<a b>", "[X]", "word", "é!"]
NAMES = ["<s>", "</s>", "<unk>", "[PAD]", "<|im_end|>", "[X]"]
PIECES = st.sampled_from(
    [*CONTENTS, *NAMES, " ", "  ", "\n", "the", " cat", "swordfish", " .", "n't", "12", "é", "日本"]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=10).map("".join)
SENTENCEPIECE = ["sp-bpe", "sp-unigram", "sp-bpe-llama", "sp-bpe-clean"]
FAST = ["json-bpe", "json-wordlevel", "json-unigram", "qwen2"]


@functools.cache
def sentencepiece_model(kind: str) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=320,
        model_type="unigram" if kind == "sp-unigram" else "bpe",
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc" if kind == "sp-bpe-clean" else "identity",
        remove_extra_whitespaces=kind == "sp-bpe-clean",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


@functools.cache
def fast_model(kind: str) -> str:
    names = ["<unk>", "<s>", "</s>"]
    if kind in ("json-bpe", "qwen2"):
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = hf.decoders.ByteLevel()
        alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = hf.trainers.BpeTrainer(
            vocab_size=320,
            initial_alphabet=alphabet,
            special_tokens=[] if kind == "qwen2" else names,
            show_progress=False,
        )
    elif kind == "json-wordlevel":
        tokenizer = hf.Tokenizer(hf.models.WordLevel(unk_token="<unk>"))
        tokenizer.normalizer = hf.normalizers.Lowercase()
        tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
        trainer = hf.trainers.WordLevelTrainer(special_tokens=names, show_progress=False)
    else:
        tokenizer = hf.Tokenizer(hf.models.Unigram())
        tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace()
        tokenizer.decoder = hf.decoders.Metaspace()
        trainer = hf.trainers.UnigramTrainer(
            vocab_size=150, special_tokens=names, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer.to_str()


def flags(special: bool) -> st.SearchStrategy[dict[str, bool]]:
    names = ("lstrip", "rstrip", "single_word", "normalized")
    drawn = st.fixed_dictionaries({name: st.booleans() for name in names})
    return drawn.map(lambda chosen: {**chosen, "special": special})


@st.composite
def folders(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """A kind of tokenizer, and the files beside its model."""
    kind = draw(st.sampled_from(SENTENCEPIECE + FAST))
    files: dict[str, str] = {}
    model_type = "llama" if kind == "sp-bpe-llama" else "qwen2" if kind == "qwen2" else "mistral"
    own: Any = None
    if kind in SENTENCEPIECE:
        model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(kind))
        size = model.get_piece_size()
    else:
        own = json.loads(fast_model(kind))
        size = hf.Tokenizer.from_str(json.dumps(own)).get_vocab_size()
    settings: dict[str, Any] = {
        # transformers finds a special token of a SentencePiece model all the same.
        "split_special_tokens": kind in FAST and draw(st.sampled_from([False, False, True])),
        "clean_up_tokenization_spaces": draw(st.booleans()),
    }
    if kind in SENTENCEPIECE:
        settings["tokenizer_class"] = "LlamaTokenizer"
        # Two places where transformers does not do what SentencePiece does: without `legacy`, the
        # first space is missing behind a line break that was removed; with it, LlamaTokenizer lets
        # a text that begins with a space have no second one.
        known = {"sp-bpe-clean": True, "sp-bpe-llama": False}
        settings["legacy"] = known[kind] if kind in known else draw(st.booleans())
    else:
        settings["tokenizer_class"] = (
            "Qwen2Tokenizer" if kind == "qwen2" else "PreTrainedTokenizerFast"
        )
    # A token that is in Qwen2's vocabulary under another id is refused here.
    allowed = [content for content in CONTENTS if kind != "qwen2" or content != "word"]
    contents = draw(st.lists(st.sampled_from(allowed), unique=True, max_size=4))
    where = draw(st.sampled_from(["decoder", "added_tokens.json", "extra", "own"]))
    if where == "own" and (own is None or kind == "qwen2"):
        where = "decoder"
    tokens = {content: draw(flags(draw(st.booleans()))) for content in contents}
    if kind in SENTENCEPIECE:
        for chosen in tokens.values():
            chosen["normalized"] = False  # SentencePiece normalises only what is between them
    if where == "decoder":
        settings["added_tokens_decoder"] = {
            str(size + i): {"content": c, **tokens[c]} for i, c in enumerate(contents)
        }
    elif where == "added_tokens.json" and contents:
        files["added_tokens.json"] = json.dumps({c: size + i for i, c in enumerate(contents)})
    elif where == "extra":
        settings["additional_special_tokens"] = contents
    elif where == "own":
        own["added_tokens"] += [
            {"id": size + i, "content": c, **tokens[c]} for i, c in enumerate(contents)
        ]
    # transformers forgets control pieces that no setting names.
    named: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    named["sep_token"] = "</s>"
    if kind == "qwen2":
        named = {"bos_token": None, "eos_token": "<|im_end|>", "unk_token": "<|im_end|>"}
        named["pad_token"] = "<|im_end|>"
    for name in draw(st.lists(st.sampled_from(["eos_token", "pad_token", "mask_token"]))):
        value: Any = draw(st.sampled_from(NAMES))
        named[name] = value
    if draw(st.booleans()) and where != "decoder":
        special = {
            key: {"content": value, "lstrip": False, "rstrip": False, "normalized": False}
            for key, value in named.items()
            if value is not None and value not in tokens
        }
        files["special_tokens_map.json"] = json.dumps(special)
    settings |= named
    files["tokenizer_config.json"] = json.dumps(settings)
    files["config.json"] = json.dumps({"model_type": model_type, "vocab_size": 1000})
    if kind == "qwen2":
        files["vocab.json"] = json.dumps(own["model"]["vocab"])
        lines = [" ".join(merge) for merge in own["model"]["merges"]]
        files["merges.txt"] = "#version: 0.2\n" + "\n".join(lines) + "\n"
    elif own is not None:
        files["tokenizer.json"] = json.dumps(own)
    return kind, files


def write(folder: Path, kind: str, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    if kind in SENTENCEPIECE:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(kind))
    return folder


@settings(max_examples=60)
@given(folder=folders(), texts=st.lists(TEXTS, min_size=3, max_size=6), data=st.data())
def test_any_folder_equals_transformers(folder, texts, data):
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name), *folder)
        ours = tokenizer_lib.load(path)
        theirs = transformers.AutoTokenizer.from_pretrained(path)
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode_batch(texts) == [ours.encode(text) for text in texts]
    any_ids = data.draw(st.lists(st.integers(0, len(theirs) - 1), max_size=8))
    assert ours.decode(any_ids) == theirs.decode(any_ids, skip_special_tokens=True)
