"""Chat templates: the text of transformers, and no more time, memory or text than a template may take."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from fqs_jax.data import chat, chat_child
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.runtime.child_process import ChildProcess
from fqs_jax.runtime.errors import UserError
from tests.chats import CHATML, TALK, TEMPLATES, write_tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": " Be kind. "}


def template_of(text):
    return chat.ChatTemplate(text, TOKENS, Path("model/chat_template.jinja"))


def by_transformers(text, messages, **options):
    [found], _ = chat_template_utils.render_jinja_template(
        [messages], chat_template=text, **TOKENS | options
    )
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(name):
    text, template = TEMPLATES[name], template_of(TEMPLATES[name])
    chats = [TALK, TALK[:1], TALK[:3], [SYSTEM, *TALK], [SYSTEM, TALK[0]]]
    refusals = 0
    for messages in chats:
        for options, ours in (
            ({"add_generation_prompt": True}, template.render),
            ({"continue_final_message": True}, lambda m: template.render(m, False)),
            ({}, template.whole),
        ):
            try:
                expected = by_transformers(text, messages, **options)
            except Exception as error:
                refusals += 1
                with pytest.raises(chat.Refused, match="cannot be applied") as refused:
                    ours(messages)
                assert str(error).splitlines()[0][:40] in str(refused.value)
                continue
            assert ours(messages) == expected
    assert refusals == (6 if name in ("mistral", "gemma") else 0)


def test_other_fields_of_messages_and_tags_of_loops():
    call = {"function": {"name": "look", "arguments": {"at": "<\u00e9>", "n": [1, 2.5, None]}}}
    messages = [TALK[0], {"role": "assistant", "tool_calls": [call]}]
    text = TEMPLATES["qwen"]
    assert template_of(text).whole(messages) == by_transformers(text, messages)
    text = (
        "{% for m in messages %}\n  {% if loop.index > 2 %}{% break %}{% endif %}\n"
        "{% set ns = namespace(a=dict(b=m.role)) %}{{ ns.a | tojson(indent=2) }}{% endfor %}\n"
        "{{ tools is none }} {{ documents is none }} {{ strftime_now('%Y') }}"
    )
    assert template_of(text).whole(TALK) == by_transformers(text, TALK)


words = st.text(st.sampled_from("ab \n<>{}%|'\"\u00e9\u4f60\U0001f600"), max_size=12)


@given(st.lists(words, min_size=1, max_size=6), st.sampled_from(["chatml", "llama3", "qwen"]))
def test_any_content_is_written_as_by_transformers(contents, name):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    text = TEMPLATES[name]
    expected = by_transformers(text, messages, add_generation_prompt=True)
    assert template_of(text).render(messages) == expected


@pytest.mark.parametrize(
    "template, reason",
    [
        ("{{ raise_exception('never\\nagain') }}", r"\(never\); correct it"),
        ("{% for %}", "Expected an expression"),
        ("{{ messages.x.y }}", "has no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ namespace(__init__=1) }}", "begins with _"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "begins with _"),
        ("{% for i in range(10**9) %}{% endfor %}", "too big"),
        ("{{ 'a' * 10**11 }}", "takes more than 1024 MiB of memory; correct it"),
        ("{{ '%99999999999d' % 3 }}", "takes more than 1024 MiB of memory"),
        ("{% for i in range(9999) %}{{ 'a' * 10000 }}{% endfor %}", "more than 16,777,216 char"),
    ],
)
def test_broken_templates_are_one_line(template, reason):
    with pytest.raises(UserError, match=reason) as refused:
        template_of(template).render(TALK)
    assert "\n" not in str(refused.value) and "model/chat_template.jinja" in str(refused.value)
    assert template_of(CHATML).render(TALK[:1])  # the next one is not affected


def test_a_text_without_its_last_message_cannot_be_continued():
    with pytest.raises(UserError, match="does not appear in the text"):
        template_of("nothing").render(TALK, False)


def test_a_template_without_end_is_stopped(tmp_path, monkeypatch):
    """The system ends it after its seconds of work; and the program, if that takes too long."""
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    source = Path(chat_child.__file__).read_text()
    (tmp_path / "child.py").write_text(source.replace("SECONDS = 10", "SECONDS = 0"))
    for seconds in (60.0, 0.5):
        child = ChildProcess(lambda: str(tmp_path / "child.py"), seconds=seconds)
        monkeypatch.setattr(chat, "_process", child)
        with pytest.raises(UserError, match="takes more than 10 s for one conversation"):
            template_of(endless).render(TALK)
        if seconds > 1:  # the next process answers; half a second may be too short for its start
            assert template_of(CHATML).render(TALK[:1])
        child.close()
        (tmp_path / "child.py").write_text(source)


def test_memory_is_watched_where_the_system_does_not_limit_it():
    code = (
        "from fqs_jax.data import chat_child\nchat_child.MEMORY = 1 << 20\n"
        "chat_child.watch_memory()\nprint('never')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (ended.returncode, ended.stdout) == (chat_child.OUT_OF_MEMORY, b"")


def test_the_child_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("open('marker', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat, "_process", ChildProcess(lambda: chat_child.__file__))
    assert template_of(CHATML).render(TALK[:1]).endswith("<|im_start|>assistant\n")
    assert not (tmp_path / "marker").exists()
    chat._process.close()


def test_where_templates_stand(tmp_path):
    folder = tmp_path / "model"
    write_tokenizer(folder)
    tokenizer = tokenizer_lib.load(folder)

    def chosen(name=None):
        return chat.choose(folder, tokenizer, name).text

    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    with pytest.raises(UserError, match="has no chat template .* do without a chat template"):
        chosen()

    def keep(template):
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings | {"chat_template": template})
        )

    keep("one")
    assert chosen() == "one"
    keep([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    assert chosen() == "a" and chosen("tool_use") == "b"
    with pytest.raises(UserError, match="no chat template 'c'.*: default, tool_use"):
        chosen("c")
    keep([{"name": "x", "template": "a"}, {"name": "y", "template": "b"}])
    with pytest.raises(UserError, match="several chat templates.*: x, y"):
        chosen()
    for wrong in (5, [5], [{"name": "a"}], {"a": 5}):
        keep(wrong)
        with pytest.raises(UserError, match="chat_template in .* is no text"):
            chosen()
    keep("one")
    (folder / "chat_template.jinja").write_text("file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    loaded = PreTrainedTokenizerFast.from_pretrained(folder).chat_template
    found = {name: text for name, (text, _) in chat.read(folder).items()}
    assert found == loaded == {"default": "file", "rag": "rag"}


def test_tokens_that_only_the_tokenizer_names(tmp_path):
    """A folder whose settings have no eos_token: templates get the one that ends its texts."""
    write_tokenizer(tmp_path / "model")
    tokenizer = dataclasses.replace(tokenizer_lib.load(tmp_path / "model"), bos_id=2, eos_id=3)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}")
    assert chat.choose(tmp_path, tokenizer).render(TALK) == "<|im_start|><|im_end|>"


def test_a_template_that_links_out_of_its_folder_is_refused(tmp_path):
    write_tokenizer(tmp_path / "model")
    tokenizer = tokenizer_lib.load(tmp_path / "model")
    (tmp_path / "secret").write_text("a key")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    (tmp_path / "model" / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="chat_template.jinja is a link to a file outside"):
        chat.choose(tmp_path / "model", tokenizer)
