"""From a config's data section to rows and to a tokenizer."""

import json

import numpy as np
import pytest

from fqs_jax.data import corpus
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, write_text


def text_config(path, **changes):
    text = {"data.source": "text", "data.text": str(path), "data.tokenizer_pieces": 300}
    return clock_config(text | changes).data


def documents(data, seed=0):
    return [source[i] for source, _ in corpus.sources(data, seed) for i in range(len(source))]


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    data = clock_config().data
    return data, corpus.train_tokenizer(data, 0, tmp_path_factory.mktemp("clock"))


def test_clock_symbols_are_one_token_each(clock):
    data, tokenizer = clock
    task = corpus.built_in_task(data, 0)
    assert tokenizer.vocab_size == len(task.symbols) + 3
    ids = tokenizer.encode(" ".join(task.symbols))
    assert len(ids) == len(set(ids)) == len(task.symbols)
    document = documents(data, 0)[0]
    assert len(tokenizer.encode(document)) == len(document.split())
    assert tokenizer.decode(tokenizer.encode(document)) == document


def test_clock_documents_follow_the_seed(clock):
    data, _ = clock
    assert len(documents(data, 0)) == data.num_documents
    assert documents(data, 0) == documents(data, 0) != documents(data, 1)


def test_a_clock_config_read_from_json_is_the_same_task(clock):
    data, _ = clock
    copy = clock_config().data
    copy.unlock()
    copy.clock = type(copy)(json.loads(json.dumps(data.clock.to_dict())))  # tuples are lists now
    assert corpus.built_in_task(copy, 0) == corpus.built_in_task(data, 0)


def test_text_files_and_a_tokenizer_for_them(tmp_path):
    data = text_config(write_text(tmp_path / "a.jsonl", 40))
    assert len(documents(data, 0)) == 40
    tokenizer = corpus.train_tokenizer(data, 0, tmp_path / "tokenizer")
    assert tokenizer.vocab_size == 300
    write_text(tmp_path / "b.txt", 40)
    data.text = f"{tmp_path}/*.jsonl,{tmp_path}/b.txt"
    assert len(documents(data, 0)) == 41
    data.text_key = "body"
    with pytest.raises(UserError, match="no key 'body'"):
        documents(data, 0)


def test_cropped_rows_are_one_document_each(clock):
    data, tokenizer = clock
    rows = corpus.dataset(data, tokenizer, 2, 0, 0)
    assert rows.epoch_size == data.num_documents
    known = {tuple(tokenizer.encode(document)) for document in documents(data, 0)}
    for step in range(5):
        batch = rows.batch(step)
        assert batch["tokens"].shape == batch["mask"].shape == (2, data.seq_len)
        for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
            bos, *document = tokens[mask].tolist()
            assert bos == tokenizer.bos_id and tuple(document) in known


def test_packed_rows_are_full(clock):
    data, tokenizer = clock
    packed = clock_config({"data.rows": "pack"}).data
    rows = corpus.dataset(packed, tokenizer, 2, 0, 0)
    stream = sum(len(document.split()) + 2 for document in documents(data, 0))
    assert rows.epoch_size == -(-stream // data.seq_len)
    padded = sum(not rows.batch(step)["mask"].all() for step in range(rows.epoch_size // 2))
    assert padded <= 1  # the stream's end


def test_streams_and_seeds_have_orders_of_their_own(clock):
    data, tokenizer = clock

    def first(seed, stream):
        return corpus.dataset(data, tokenizer, 8, seed, stream).batch(0)["tokens"]

    np.testing.assert_array_equal(first(0, 1), first(0, 1))
    assert (first(0, 1) != first(0, 2)).any() and (first(0, 1) != first(1, 1)).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.source": "web"}, "data.source is 'web'; choose from text, clock"),
        ({"data.text": ""}, "no text to train on: give --text=FILE"),
        ({"data.text": "nowhere/*.txt"}, "no file matches nowhere/"),
        ({"data.tokenizer_pieces": 0}, "set data.tokenizer_pieces"),
        ({"data.tokenizer_pieces": 9999}, "at most; set data.tokenizer_pieces"),
        ({"data.rows": "whole"}, "data.rows is 'whole'; choose from pack, crop"),
        ({"data.workers": -1}, "data.workers is -1"),
        ({"data.workers": 10**6}, "data.workers is 1000000; set 0"),
        ({"data.seq_len": 1}, "data.seq_len is 1; set 2 to"),
        ({"data.seq_len": 10**12}, "data.seq_len is 1000000000000; set 2 to"),
        ({"data.source": "clock", "data.num_documents": 0}, "data.num_documents is 0; set 1 to"),
        ({"data.source": "clock", "data.num_documents": 10**15}, "set 1 to 100000000, which"),
        ({"data.text": "a.txt@nan"}, "a.txt: the weight is nan"),
        ({"data.text": "s3://bucket/a.txt"}, "s3://bucket/a.txt is an address"),
        ({"data.rows": "pack", "data.cache_dir": "s3://bucket"}, "s3://bucket is an address"),
        ({"data.tfds_dir": "gs://bucket"}, "gs://bucket is an address"),
        (
            {"data.text": "tfds:gsm8k:train", "data.tfds_dir": "nowhere"},
            "add --config.data.download=true",
        ),
        ({"data.text": "a.txt@0.5,b.txt"}, "b.txt has no weight but others do"),
    ],
)
def test_what_is_refused(tmp_path, clock, changes, message):
    data = text_config(write_text(tmp_path / "a.txt"), **changes)
    with pytest.raises(UserError, match=message) as refused:
        corpus.dataset(data, clock[1], 2, 0, 0)
        corpus.train_tokenizer(data, 0, tmp_path / "tokenizer")
    assert "\n" not in str(refused.value)
