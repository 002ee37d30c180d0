"""The program `generate`: what it prints where, and what it refuses."""

import io
import math
import re
import sys

import pytest

from fqs_jax.inference import generation
from fqs_jax.inference import prompts as prompts_lib
from fqs_jax.inference import stream as stream_lib
from fqs_jax.runs import loading
from fqs_jax.runtime.errors import UserError
from tests.tiny_runs import clock_config, refusal, save_stage

THINKS = "1"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate") / "W"
    save_stage(root, clock_config(), int(THINKS))
    return loading.load(str(root), THINKS)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich: as if the output were a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def printed(model, capsys, show_thoughts):
    stream = stream_lib.Stream(model, stream_lib.plain_console(), "3 +1", show_thoughts)
    seen = []

    def step(emitted):
        stream.step(emitted)
        seen.append(capsys.readouterr().out)

    [result] = generation.generate(model, ["3 +1"], 5, on_step=step)
    return result, seen


def test_text_is_printed_as_it_is_made(model, capsys, no_terminal):
    result, seen = printed(model, capsys, False)
    assert len(result.tokens) == len(seen) == 5 and all(seen)
    assert "".join(seen) == f"3 +1 {result.text}"


def test_thoughts_are_dimmed_on_a_terminal(model, capsys, terminal, monkeypatch):
    _, seen = printed(model, capsys, True)
    thoughts = re.findall("\x1b\\[2;3m ‹.*?› \x1b\\[0m", "".join(seen))
    assert len(thoughts) == 5
    monkeypatch.setenv("NO_COLOR", "1")
    _, plain = printed(model, capsys, True)
    assert "\x1b" not in "".join(plain)
    assert "".join(plain) == re.sub("\x1b\\[[\\d;]*m", "", "".join(seen))


def test_a_thought_without_words_shows_its_kind(model, capsys, no_terminal):
    """Id 0 stands for its tokens, and is a token of the vocabulary."""
    _, seen = printed(model.with_thought(tokens="latent"), capsys, True)
    assert len(re.findall(r" ‹\(latent\)\|-?\d\.\d\d› ", "".join(seen))) == 5
    assert "‹(latent)|" not in "".join(printed(model, capsys, True)[1])


def test_text_of_a_model_does_not_act_on_a_terminal(model, capsys, no_terminal, monkeypatch):
    """Line breaks and tabs stay; codes that colour, move, ring or reverse are shown."""
    said = "a\tb\nc\x1b[2J\x07\x9b31m\u202e\u2066\r\x00é龟"
    shown = "a\tb\nc\\x1b[2J\\x07\\x9b31m\\u202e\\u2066\\r\\x00é龟"
    assert stream_lib.visible(said) == shown
    monkeypatch.setattr(type(model.tokenizer), "decode", lambda _, ids: said if len(ids) else "")
    _, seen = printed(model, capsys, True)
    text = "".join(seen)
    assert shown.split("\n")[1] in text
    assert not set("\x1b\x07\x9b\u202e\u2066\r\x00") & set(text)


def test_thoughts_have_no_style_elsewhere(model, capsys, no_terminal):
    _, seen = printed(model, capsys, True)
    assert "".join(seen).count("‹") == 5 and "\x1b" not in "".join(seen)


def test_what_a_terminal_cannot_write_is_a_question_mark(monkeypatch, no_terminal):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    stream_lib.plain_console().print("3 \udcff é")
    sys.stdout.flush()
    assert written.getvalue() == b"3 ? ?\n"


def test_prompts_are_lines_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffone\r\n\n \ntwo\u2028lines \x0b\nthree".encode())
    assert prompts_lib.read(str(file)) == ["one", "two\u2028lines \x0b", "three"]


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "cannot read .*prompts.txt: no such file"),
        (b"", "has no prompt; write one a line"),
        (b" \n\n", "has no prompt"),
        ("the cat".encode("utf-16"), "is not UTF-8 at byte 0"),
        ("the cat".encode("utf-16-le"), "has NUL characters"),
        (b"caf\xe9\n", "is not UTF-8 at byte 3"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path, content, expected):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=expected) as refused:
        prompts_lib.read(str(file))
    assert "\n" not in str(refused.value)


def test_a_prompt_longer_than_the_model_reads_is_refused(model):
    longest = model.model.max_seq_len
    fits = " ".join("0" * (longest - 1))  # and the token that begins a text
    assert prompts_lib.longest(model, ["0 +1", fits]) == longest
    with pytest.raises(UserError, match="prompt 2 of 2 has 65 tokens, the model was made for 64"):
        prompts_lib.longest(model, ["0 +1", f"{fits} 0"])


def test_what_never_ends_is_refused(model):
    prompts_lib.refuse_endless(6400, model.model.max_seq_len)
    with pytest.raises(UserError, match="=6401 is more than 100 times the 64 tokens"):
        prompts_lib.refuse_endless(6401, model.model.max_seq_len)


def test_thoughts_that_are_left_out_cannot_be_shown():
    options = ("--checkpoint=none", "--prompt=a", "--nothink", "--show_thoughts")
    assert "--nothink leaves no thoughts for --show_thoughts" in refusal("generate", *options)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20])
def test_seeds_that_are_none(seed):
    assert f"--seed={seed}" in refusal("generate", f"--seed={seed}")


@pytest.mark.parametrize(
    "count, temperature, top_p, expected",
    [
        (0, 0.0, 1.0, "max_new_tokens must be at least 1, not 0"),
        (1, -1.0, 1.0, "temperature must be 0 or more and finite, not -1.0"),
        (1, math.nan, 1.0, "not nan"),
        (1, math.inf, 1.0, "not inf"),
        (1, 0.0, 0.0, "top_p must be above 0 and at most 1, not 0.0"),
        (1, 0.0, 2.0, "not 2.0"),
        (1, 0.0, math.nan, "not nan"),
        (1, 1e-40, 1.0, "temperature must be at least 1e-06, or 0 for the likeliest token"),
        (1, 1.0, 1e-40, "top_p must be at least 1e-06"),
    ],
)
def test_sampling_out_of_range_is_refused(model, count, temperature, top_p, expected):
    with pytest.raises(UserError, match=expected):
        generation.generate(model, ["0"], count, temperature=temperature, top_p=top_p)


def test_no_prompts_make_no_texts(model):
    assert generation.generate(model, []) == []
