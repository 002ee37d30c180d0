"""Tokenizers as people have them: other files under their names, ids without a row, crashes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data import tokenizer_library, tokenizer_training
from fqs_jax.runtime import notes
from fqs_jax.runtime.errors import UserError

LINES = ["Once upon a time there was a little cat, and the cat had 12 hats."] * 20
PLACEHOLDERS = {
    "an empty file": b"",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "a web page": b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "a tiktoken file": b"IQ== 0\nIg== 1\nIw== 2\n",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A tokenizer.model of 300 pieces."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer_training.train_sentencepiece(LINES, folder, 300)
    (folder / "tokenizer_config.json").unlink()
    return folder


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch):
    monkeypatch.setattr(notes, "_noted", set())


def words(**parts: Any) -> bytes:
    """A tokenizer.json whose vocabulary is letters and digits, with other parts."""
    vocabulary = ["<unk>", "<s>", "</s>", " ", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = hf.Tokenizer(
        hf.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex("."), "isolated")
    return json.dumps({**json.loads(tokenizer.to_str()), **parts}).encode()


def folder_of(tmp_path: Path, **files: Any) -> Path:
    """A folder with these files; a double underscore in a name stands for the point."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name.replace("__", ".")).write_bytes(data)
    return tmp_path


def model_of(trained: Path, tmp_path: Path, **files: Any) -> Path:
    shutil.copy(trained / "tokenizer.model", tmp_path)
    return folder_of(tmp_path, **files)


# ---- Which file is read


@pytest.mark.parametrize(("looks", "content"), PLACEHOLDERS.items())
def test_a_tokenizer_model_that_is_none(tmp_path, capsys, looks, content):
    folder = folder_of(tmp_path, tokenizer__model=content)
    with pytest.raises(UserError, match=f"tokenizer.model is not a SentencePiece .* but {looks}"):
        tokenizer_lib.load(folder)
    folder_of(tmp_path, tokenizer__json=words())
    ids = [tokenizer_lib.load(folder).encode("abc") for _ in range(2)]
    assert ids == [[4, 5, 6]] * 2
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and looks in note and "tokenizer.json is used" in note


@pytest.mark.parametrize(("looks", "content"), list(PLACEHOLDERS.items())[:3])
def test_a_tokenizer_json_that_is_none(trained, tmp_path, capsys, looks, content):
    folder = model_of(trained, tmp_path, tokenizer__json=content)
    assert tokenizer_lib.load(folder).vocab_size == 300
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and looks in note and "tokenizer.model is used" in note


def test_a_tokenizer_model_of_another_model(trained, tmp_path):
    folder = model_of(trained, tmp_path, tokenizer__json=words())
    assert tokenizer_lib.load(folder).encode("abc") == [4, 5, 6]


def test_paths_that_are_not_utf8(trained, tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xfflder")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    shutil.copy(trained / "tokenizer.model", folder)
    assert tokenizer_lib.load(folder).vocab_size == 300
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"f\\udcfflder/tokenizer.json is not"):
        tokenizer_lib.load(folder)
    (folder / "tokenizer.json").write_bytes(words())
    assert tokenizer_lib.load(folder).encode("abc") == [4, 5, 6]


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_pipe_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a named pipe, not a file"):
        tokenizer_lib.load(tmp_path)


# ---- Added tokens


def test_a_chat_fine_tune_of_a_sentencepiece_model(trained, tmp_path):
    marks = {"<|im_end|>": 300, "<|im_start|>": 301}
    decoder = {
        "1": {"content": "<s>", "special": True},
        "300": {"content": "<|im_end|>", "special": True},
        "301": {"content": "<|im_start|>", "special": False, "normalized": False},
    }
    settings = {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>", "legacy": True}
    folder = model_of(trained, tmp_path, added_tokens__json=marks, tokenizer_config__json=settings)
    t = tokenizer_lib.load(folder)
    plain = t.encode("cat")
    text = "<|im_start|>cat<|im_end|>cat<s>"
    assert t.encode(text) == [301, *plain, 300, *plain, 1]
    assert t.encode_batch([text, "cat"]) == [t.encode(text), plain]
    assert t.decode(t.encode(text)) == "<|im_start|> cat cat"
    assert (t.eos_id, t.vocab_size) == (300, 302)


def test_a_token_without_an_id_comes_last(trained, tmp_path):
    special = {"additional_special_tokens": ["<tool>"], "eos_token": "<end>"}
    folder = model_of(trained, tmp_path, special_tokens_map__json=special)
    t = tokenizer_lib.load(folder)
    assert t.encode("<end><tool>") == [300, 301]
    assert t.eos_id == 2  # no file says that the model has a row for <end>
    folder_of(folder, config__json={"vocab_size": 301})
    assert tokenizer_lib.load(folder).eos_id == 300


def test_other_ids_in_the_files_around_tokenizer_json(tmp_path, capsys):
    added = {"added_tokens_decoder": {"50": {"content": "<new>"}}}
    folder = folder_of(tmp_path, tokenizer__json=words(), tokenizer_config__json=added)
    assert tokenizer_lib.load(folder).encode("<new>") == [40]
    assert "gives '<new>' the id 40, the files beside it 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": {"x": {"content": "<a>"}}},
        {"added_tokens_decoder": {"-5": {"content": "<a>"}}},
        {"added_tokens_decoder": {"4294967296": {"content": "<a>"}}},
        {"added_tokens_decoder": {"300": {"content": 5}}},
        {"added_tokens_decoder": {"300": "<a>"}},
        {"added_tokens_decoder": ["<a>"]},
        {"additional_special_tokens": 7},
        {"additional_special_tokens": [7]},
        {"eos_token": {"content": 7}},
    ],
)
def test_malformed_added_tokens(trained, tmp_path, settings):
    folder = model_of(trained, tmp_path, tokenizer_config__json=settings)
    with pytest.raises(UserError, match="list of added tokens is malformed") as caught:
        tokenizer_lib.load(folder)
    assert "\n" not in str(caught.value)


# ---- End tokens, and the model's table


@pytest.mark.parametrize(
    ("config", "generation", "settings", "eos", "ends"),
    [
        ({}, {}, {}, 2, {2}),
        ({"eos_token_id": 9}, {}, {}, 9, {9}),
        ({"eos_token_id": [9, 8]}, {}, {}, 9, {8, 9}),
        ({"eos_token_id": 2}, {"eos_token_id": [2, 30]}, {}, 2, {2, 30}),
        ({"eos_token_id": 2}, {"eos_token_id": 30}, {"eos_token": "<s>"}, 1, {1, 2, 30}),
        ({"eos_token_id": []}, {"eos_token_id": None}, {"eos_token": None}, None, set()),
    ],
)
def test_every_end_token_counts(trained, tmp_path, config, generation, settings, eos, ends):
    folder = model_of(
        trained,
        tmp_path,
        config__json=config,
        generation_config__json=generation,
        tokenizer_config__json=settings,
    )
    t = tokenizer_lib.load(folder)
    assert (t.eos_id, t.end_ids) == (eos, ends)


@pytest.mark.parametrize("value", ["2", -1, True, 2.0, [2, None], {"id": 2}])
@pytest.mark.parametrize("name", ["config", "generation_config"])
def test_an_end_token_that_is_no_id(trained, tmp_path, name, value):
    folder = model_of(trained, tmp_path, **{f"{name}__json": {"eos_token_id": value}})
    with pytest.raises(UserError, match=f"{name}.json: eos_token_id is .* whole numbers from 0"):
        tokenizer_lib.load(folder)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [300, 128001, 2**32, 10**30])
def test_bos_and_end_tokens_beyond_the_table(trained, tmp_path, key, value):
    folder = model_of(trained, tmp_path, config__json={key: value})
    with pytest.raises(UserError, match=f"token has id {value}, but .* ends at id 299"):
        tokenizer_lib.load(folder).for_table(300, folder)


def test_a_vocabulary_larger_than_the_table(trained):
    with pytest.raises(UserError, match="the tokenizer has 300 tokens, but .* ends at id 298"):
        tokenizer_lib.load(trained).for_table(299, trained)


def test_added_tokens_beyond_the_table(trained, tmp_path, capsys):
    settings = {"added_tokens_decoder": {"300": {"content": "[PAD]"}}, "pad_token": "[PAD]"}
    folder = model_of(trained, tmp_path, tokenizer_config__json=settings)
    t = tokenizer_lib.load(folder)
    assert t.pad_id == 300 and t.encode("[PAD]") == [300]
    fitted = [t.for_table(300, folder) for _ in range(2)][0]
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and "added tokens up to id 300" in note
    assert fitted.pad_id == 2 and fitted.encode("cat") == t.encode("cat")
    for encode in (fitted.encode, lambda text: fitted.encode_batch(["cat", text])):
        with pytest.raises(UserError, match=r"the token '\[PAD\]' of id 300, .* ends at id 299"):
            encode("cat[PAD]")


# ---- Libraries


def replaced(content: str, times: int, pattern: dict[str, str]) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


@pytest.mark.parametrize(
    "normalizer",
    [
        replaced("aa", 40, {"String": "a"}),
        replaced("xy", 40, {"Regex": ""}),
        replaced("x" * 1_000_000, 1, {"Regex": "."}),
    ],
)
def test_a_normalizer_that_grows_text_without_bound(tmp_path, normalizer):
    folder = folder_of(tmp_path, tokenizer__json=words(normalizer=normalizer))
    with pytest.raises(UserError, match="makes a text grow without bound"):
        tokenizer_lib.load(folder)


def test_a_decoder_that_grows_text_without_bound(tmp_path):
    steps = replaced("aa", 40, {"String": "a"})["normalizers"]
    decoder = {"type": "Sequence", "decoders": steps}
    folder = folder_of(tmp_path, tokenizer__json=words(decoder=decoder))
    with pytest.raises(UserError, match="makes a text grow without bound"):
        tokenizer_lib.load(folder)


def test_a_text_of_more_tokens_than_it_can_have():
    tokenizer_library.check_length(40, "a", "F")
    with pytest.raises(UserError, match="F makes 5000 tokens of a text of 1 bytes"):
        tokenizer_library.check_length(5000, "a", "F")


@pytest.mark.parametrize(
    "parts",
    [
        {"decoder": {"type": "Strip", "content": " ", "start": 10**9, "stop": 10**9}},
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "(x+x+)+y"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
    ],
)
def test_a_tokenizer_that_crashes_its_library(tmp_path, capfd, parts):
    folder = folder_of(tmp_path, tokenizer__json=words(**parts))
    with pytest.raises(UserError, match="tokenizer.json cannot .*; fetch or make the file again"):
        tokenizer_lib.load(folder)
    assert capfd.readouterr().err == ""  # nor does the library print its own backtrace


def test_a_text_that_the_library_cannot_encode(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"}
    t = tokenizer_lib.load(folder_of(tmp_path, tokenizer__json=words(model=model)))
    assert t.encode("aa") == [0, 0]
    for encode in (t.encode, lambda text: t.encode_batch([text])):
        with pytest.raises(UserError, match="cannot encode a text .*Missing") as caught:
            encode("b")
        assert "\n" not in str(caught.value)


def test_errors_of_libraries_and_of_the_user(tmp_path):
    class PanicException(BaseException):
        """As of pyo3, by name."""

    for error in (PanicException("a\nb"), Exception("a\x1b[2J"), RuntimeError()):
        with (
            pytest.raises(UserError, match="^F fails") as caught,
            tokenizer_library.errors("F fails"),
        ):
            raise error
        assert str(caught.value).isprintable()
    for stop in (KeyboardInterrupt, SystemExit, GeneratorExit, UserError):
        with pytest.raises(stop), tokenizer_library.errors("F fails"):
            raise stop


def test_silence_ends_with_the_call(capfd):
    with tokenizer_library.silence():
        os.write(2, b"hidden")
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"
