"""Conversations as training rows: ids and the assistant's tokens against transformers, through every cut."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fqs_jax.data import chat, corpus
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.conversations import Conversations
from fqs_jax.data.sources.specification import Documents
from fqs_jax.runtime.errors import UserError
from tests.chats import CHATML, MARKED, TALK, TEMPLATES, write_tokenizer
from tests.tiny_runs import clock_config

OTHERS = [[TALK[2], TALK[3]], [{"role": "system", "content": "Be kind."}, *TALK[:2]], TALK * 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("chats") / "model"
    write_tokenizer(place, MARKED)
    return place


@pytest.fixture(scope="module")
def theirs(folder):
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizer_lib.load(folder)


def conversations(folder, tokenizer, talks, template=None):
    chosen = chat.choose(folder, tokenizer)
    chosen = dataclasses.replace(chosen, text=template or chosen.text)
    return Conversations(Documents([json.dumps(talk) for talk in talks]), chosen)


def expected(theirs, talk):
    found = theirs.apply_chat_template(
        talk, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    return found["input_ids"], [bool(inside) for inside in found["assistant_masks"]]


def read(source, index, tokenizer):
    stored = source.tokens(index, tokenizer)
    return np.where(stored < 0, ~stored, stored).tolist(), (stored >= 0).tolist()


words = st.text(st.sampled_from("the catsw. \n\u00e9\u4f60\U0001f600<|>"), max_size=10)


@given(st.lists(words, min_size=2, max_size=5))
def test_ids_and_marks_are_those_of_transformers(folder, theirs, tokenizer, contents):
    roles = ("user", "assistant")
    talk = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    source = conversations(folder, tokenizer, [talk])
    assert read(source, 0, tokenizer) == expected(theirs, talk)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "marked"])
def test_without_marks_the_part_is_what_an_answer_adds(folder, theirs, tokenizer, name):
    """The tokens that an answer adds to the prompt that asks for it, both written by transformers."""
    source = conversations(folder, tokenizer, [TALK], TEMPLATES[name])
    ids, learned = read(source, 0, tokenizer)
    template = TEMPLATES[name].replace('strftime_now("%d %b %Y")', '"26 Jul 2024"')
    options = {"chat_template": template, "return_dict": False}
    assert ids == theirs.apply_chat_template(TALK, **options)
    inside = []
    for turn in (1, 3):
        before = theirs.apply_chat_template(TALK[:turn], add_generation_prompt=True, **options)
        after = theirs.apply_chat_template(TALK[: turn + 1], **options)
        inside += range(len(before), len(after))
    assert np.flatnonzero(learned).tolist() == inside
    text = tokenizer.decode(np.array(ids)[learned].tolist())
    assert "mat" in text and "Tom" in text and "cat" not in text and "dog" not in text


@pytest.mark.parametrize(
    "template, reason",
    [
        # as Qwen3 does with the thoughts of earlier answers
        (
            "{% for m in messages %}{{ m.role }}{% if loop.last %}!{% endif %}{{ m.content }}{% endfor %}",
            "in message 2 otherwise when more messages follow.*mark it with {% generation %}",
        ),
        ("{% generation %}{% endgeneration %}x", "marks no text of the assistant here"),
        ("{{ raise_exception('no') }}", r"cannot be applied \(no\)"),
    ],
)
def test_templates_that_cannot_be_learned_from(folder, tokenizer, template, reason):
    source = conversations(folder, tokenizer, [TALK], template)
    with pytest.raises(UserError, match=reason) as refused:
        source.tokens(0, tokenizer)
    assert str(refused.value).startswith("document 1: ") and "\n" not in str(refused.value)


def test_a_sentencepiece_tokenizer_marks_the_same_text(tmp_path):
    from fqs_jax.data import tokenizer_training
    from tests.tiny_runs import sentences

    tokenizer_training.train_sentencepiece(sentences(200), tmp_path, 300)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        str(300 + i): {"content": name, "special": True}
        for i, name in enumerate(("<|im_start|>", "<|im_end|>"))
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    tokenizer = tokenizer_lib.load(tmp_path)
    source = conversations(tmp_path, tokenizer, [TALK])
    ids, learned = read(source, 0, tokenizer)
    assert ids == tokenizer.encode(source[0])
    parts = np.split(np.array(ids), np.flatnonzero(np.diff(learned)) + 1)
    texts = [tokenizer.decode(part.tolist()).strip() for part in parts[1::2]]
    assert texts == [TALK[1]["content"].strip(), TALK[3]["content"].strip()]
    ends = [part.tolist().count(301) for part in parts[1::2]]
    assert ends == [1, 1]


def config(file, **changes):
    text = {"data.source": "text", "data.text": str(file), "data.messages_key": "messages"}
    return clock_config(text | {f"data.{name}": value for name, value in changes.items()}).data


@pytest.fixture
def file(tmp_path):
    lines = [json.dumps({"messages": talk}) for talk in [TALK, *OTHERS]]
    (tmp_path / "chats.jsonl").write_text("\n\n".join(lines) + "\n")
    return tmp_path / "chats.jsonl"


def test_cropped_rows_have_the_targets_of_whole_conversations(folder, theirs, tokenizer, file):
    rows = corpus.dataset(config(file, seq_len=256), tokenizer, 4, 0, 0, folder)
    batch = rows.batch(0)
    found = [
        (tokens[mask].tolist(), target[mask].tolist())
        for tokens, mask, target in zip(
            batch["tokens"], batch["mask"], batch["target"], strict=True
        )
    ]
    assert sorted(found) == sorted(expected(theirs, talk) for talk in [TALK, *OTHERS])
    assert not (batch["target"] & ~batch["mask"]).any() and (batch["tokens"] >= 0).all()
    short = corpus.dataset(config(file, seq_len=16), tokenizer, 4, 0, 0, folder).batch(3)
    assert short["tokens"].shape == short["target"].shape == (4, 16) and short["mask"].all()


def test_packed_rows_are_the_conversations_end_to_end(folder, theirs, tokenizer, file, monkeypatch):
    from fqs_jax.data.rows import token_store

    whole = [expected(theirs, talk) for talk in [TALK, *OTHERS]]
    for in_memory in (1 << 24, 0):
        monkeypatch.setattr(token_store, "IN_MEMORY", in_memory)
        cache = str(file.parent / "cache")
        data = config(file, seq_len=32, rows="pack", cache_dir=cache)
        rows = corpus.dataset(data, tokenizer, 1, 0, 0, folder)
        batches = [rows.batch(step) for step in range(rows.epoch_size)]
        # In the order of the file, by the tokens that each row must have.
        ids = [i for one, _ in whole for i in one]
        inside = [x for _, one in whole for x in one]
        cut = [(ids[i : i + 32], inside[i : i + 32]) for i in range(0, len(ids), 32)]
        found = [
            (b["tokens"][b["mask"]].tolist(), b["target"][b["mask"]].tolist()) for b in batches
        ]
        assert sorted(found) == sorted(cut)
        assert {"segment", "target"} == set(corpus.extra_keys(data))


def test_rows_do_not_depend_on_the_day(folder, tokenizer, file):
    (folder / "chat_template.jinja").write_text(TEMPLATES["llama3"])
    try:
        rows = corpus.dataset(config(file), tokenizer, 4, 0, 0, folder)
        text = corpus.sources(config(file), 0, folder)[0][0][0]
    finally:
        (folder / "chat_template.jinja").write_text(MARKED)
    assert "Today Date: 26 Jul 2024" in text
    other = corpus.dataset(config(file), tokenizer, 4, 0, 0, folder)
    assert rows.identity != other.identity


def test_mistakes_are_one_line(folder, tokenizer, file, tmp_path):
    with pytest.raises(UserError, match="data.messages_key needs a model with a chat template"):
        corpus.train_tokenizer(config(file, tokenizer_pieces=300), 0, tmp_path / "tokenizer")
    with pytest.raises(UserError, match="messages_key is for files of conversations"):
        corpus.sources(config(file, source="clock"), 0, folder)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="bare has no chat template"):
        corpus.dataset(config(file), tokenizer, 4, 0, 0, tmp_path / "bare")
    with pytest.raises(UserError, match=f"{file}:3: .*cannot be applied .*alternate"):
        (folder / "chat_template.jinja").write_text(TEMPLATES["mistral"])
        try:
            turned = [OTHERS[1][0], *TALK[1:2]]
            file.write_text(
                "\n".join(json.dumps({"messages": t}) for t in (TALK, TALK, turned)) + "\n"
            )
            source = corpus.sources(config(file), 0, folder)[0][0]
            for index in range(3):
                source.tokens(index, tokenizer)
        finally:
            (folder / "chat_template.jinja").write_text(MARKED)
