"""Documents as tokens: in memory and on disk alike, once made never again, and whole after a kill."""

import json
import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data.rows import token_store
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import Documents, open_sources
from fqs_jax.data.tokenizer_training import train_sentencepiece
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import sentences

TEXTS = [*sentences(50), " ", *sentences(30, seed=1), "\n"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_sentencepiece(sentences(200), tmp_path_factory.mktemp("tokenizer"), 300)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A text that goes to disk, in pieces of 16 documents."""
    monkeypatch.setattr(token_store, "IN_MEMORY", 0)
    monkeypatch.setattr(token_store, "MIN_PIECE", 16)
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return open_sources(str(path), Options())[0][0]


def expected(tokenizer):
    documents = [tokenizer.encode(text) for text in TEXTS if text.strip()]
    return [[tokenizer.bos_id, *document, tokenizer.eos_id] for document in documents]


def check(stream, documents):
    flat = [token for document in documents for token in document]
    assert len(stream) == len(flat)
    assert stream.read(0, len(flat)).tolist() == flat
    for start in range(0, len(flat), 7):  # across pieces, and beyond the end
        assert stream.read(start, start + 20).tolist() == flat[start : start + 20]
        assert stream.read(start, start + 20).dtype == np.int32
    home = [d for d, document in enumerate(documents) for _ in document]
    found = stream.document(0, len(flat) + 5)
    assert len(found) == len(home)
    assert (np.equal.outer(found, found) == np.equal.outer(home, home)).all()


def test_in_memory(tokenizer, tmp_path):
    check(token_store.tokenize(Documents(TEXTS), tokenizer, tmp_path), expected(tokenizer))
    assert list(tmp_path.iterdir()) == []


def test_on_disk(tokenizer, source, tmp_path):
    stream = token_store.tokenize(source, tokenizer, tmp_path / "cache")
    check(stream, expected(tokenizer))
    check(pickle.loads(pickle.dumps(stream)), expected(tokenizer))
    assert len(pickle.dumps(stream)) < 2000  # names of files, not what is in them
    assert len(stream.pieces) == 5
    [folder] = (tmp_path / "cache" / "tokens").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".npy"}
    assert np.load(stream.pieces[0]).dtype == np.uint16


def test_made_once(tokenizer, source, tmp_path, monkeypatch):
    token_store.tokenize(source, tokenizer, tmp_path / "cache")
    monkeypatch.setattr(token_store, "_encode", None)
    check(token_store.tokenize(source, tokenizer, tmp_path / "cache"), expected(tokenizer))


@given(st.integers(0, 9))
def test_goes_on_after_a_kill_between_any_two_files(tokenizer, tmp_path_factory, kill_at):
    class Killed(BaseException):
        pass

    written, replace = [], token_store.replace_array

    def write_or_die(path, values):
        if len(written) == kill_at:
            raise Killed
        written.append(path)
        replace(path, values)

    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_store, "MIN_PIECE", 16)
        patch.setattr(token_store, "replace_array", write_or_die)
        with pytest.raises(Killed):
            token_store._on_disk(Documents(TEXTS), tokenizer, folder)
        written_before = set(written)
        patch.setattr(token_store, "replace_array", lambda *a: (written.append(a[0]), replace(*a)))
        check(token_store._on_disk(Documents(TEXTS), tokenizer, folder), expected(tokenizer))
    again = [path for path in written[len(written_before) :] if path in written_before]
    assert len(again) <= 1  # the tokens of a piece whose lengths were not yet there


def test_shares_that_are_made_apart_are_one_store(tokenizer, source, tmp_path, monkeypatch):
    """Each makes its own pieces; whoever comes then finds all of them, and nobody needs another."""
    cache, encode, made = tmp_path / "cache", token_store._encode, []

    def counted(source, documents, tokenizer):
        made.append(documents.start // 16)
        return encode(source, documents, tokenizer)

    monkeypatch.setattr(token_store, "_encode", counted)
    sizes = [token_store.prepare(source, tokenizer, cache, (part, 3)) for part in (2, 0, 1)]
    assert [size[:2] for size in sizes] == [(2, 5), (1, 5), (2, 5)] and sorted(made) == [*range(5)]
    check(token_store.tokenize(source, tokenizer, cache, (1, 2)), expected(tokenizer))
    assert len(made) == 5
    alone = token_store.tokenize(source, tokenizer, tmp_path / "own disk", (1, 2))
    check(alone, expected(tokenizer))
    assert made[5:8] == [2, 3, 4] and sorted(made[5:]) == [*range(5)]  # its own first
    monkeypatch.setattr(token_store, "IN_MEMORY", 1 << 24)
    assert token_store.prepare(source, tokenizer, cache, (0, 1)) is None


def test_the_number_of_a_share():
    assert token_store.read_share("3/16") == (2, 16) and token_store.read_share("1/1") == (0, 1)
    for part in ("0/16", "17/16", "3", "3/0", "a/b", "-1/2", "1/2/3", ""):
        with pytest.raises(UserError, match=f"--part={part} is no part; write K/N"):
            token_store.read_share(part)


def test_another_text_or_tokenizer_is_another_store(tokenizer, source, tmp_path):
    other = train_sentencepiece(sentences(200, seed=3), tmp_path / "other", 310)
    first = token_store._name(source, tokenizer)
    assert first == token_store._name(source, tokenizer) != token_store._name(source, other)
    path = source.files[0]
    path.write_text(path.read_text().replace("a", "e", 1))
    changed = open_sources(str(path), Options())[0][0]
    assert token_store._name(changed, tokenizer) != first


def _tokenize(folder, out, barrier):
    token_store.MIN_PIECE = 4
    barrier.wait()
    stream = token_store._on_disk(Documents(TEXTS), _load(folder), out)
    return stream.read(0, len(stream)).tolist()


def _load(folder):
    from fqs_jax.data import tokenizer as tokenizer_lib

    return tokenizer_lib.load(folder)


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    tokenizer = train_sentencepiece(sentences(200), tmp_path / "tokenizer", 300)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        jobs = [(tmp_path / "tokenizer", tmp_path / "store", barrier)] * 2
        one, other = pool.starmap(_tokenize, jobs)
    assert one == other == [token for document in expected(tokenizer) for token in document]


def test_damage_and_blanks(tokenizer, source, tmp_path):
    with pytest.raises(UserError, match="nothing but blanks"):
        token_store.tokenize(Documents([" ", "\n"]), tokenizer, tmp_path)
    stream = token_store.tokenize(source, tokenizer, tmp_path / "cache")
    token_store._mapped.cache_clear()
    stream.pieces[2].write_bytes(stream.pieces[2].read_bytes()[:-40])
    with pytest.raises(UserError, match="is damaged .*; remove .* and start again"):
        stream.read(0, len(stream))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*; set data.cache_dir"):
        token_store.tokenize(source, tokenizer, tmp_path / "file")


@pytest.mark.parametrize("name", ["tokens_000001.npy", "lengths_000002.npy", "ends.npy"])
@pytest.mark.parametrize(
    "broken",
    [b"", b"garbage", b"half", np.zeros(3, np.float64), np.zeros((4, 4)), "pickled"],
    ids=str,
)
def test_broken_files_of_a_store_are_made_anew(tokenizer, source, tmp_path, name, broken):
    token_store.tokenize(source, tokenizer, tmp_path)
    [path] = (tmp_path / "tokens").rglob(name)
    content = path.read_bytes()
    if isinstance(broken, bytes):
        path.write_bytes(content[: len(content) // 2] if broken == b"half" else broken)
    else:
        values = np.array([object()]) if isinstance(broken, str) else broken
        np.save(path, values, allow_pickle=True)
    check(token_store.tokenize(source, tokenizer, tmp_path), expected(tokenizer))
    assert path.read_bytes() == content
