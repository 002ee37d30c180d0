"""Models that answer messages: where their answers end, and what they read."""

import dataclasses
from pathlib import Path

import pytest

from fqs_jax.data import messages
from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.inference import chat
from fqs_jax.inference import prompts as prompts_lib
from fqs_jax.inference.generation import prompt_ids
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runtime.errors import UserError
from tests.chats import SPECIALS, TALK, TEMPLATES, write_tokenizer

ENDS = {
    "chatml": {"</s>", "<|im_end|>"},
    "marked": {"</s>", "<|im_end|>"},
    "llama3": {"</s>", "<|eot_id|>"},
    "mistral": {"</s>"},
    "qwen": {"</s>", "<|im_end|>"},
    "gemma": {"</s>", "<end_of_turn>"},
}


def loaded(folder: Path, template: str) -> Loaded:
    """A tokenizer and a template; nothing here needs parameters."""
    write_tokenizer(folder, template)
    made = tokenizer_lib.load(folder)
    return Loaded({}, None, made, None, folder, "model", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_end_at_the_end_of_a_turn(tmp_path, name):
    model, _ = chat.for_chat(loaded(tmp_path, TEMPLATES[name]))
    assert {SPECIALS[i] for i in model.tokenizer.end_ids} == ENDS[name]


@pytest.mark.parametrize("text", ["{{ messages[0].content }}", "{{ raise_exception('no') }}", "\n"])
def test_a_template_without_an_end_of_turn(tmp_path, text):
    model, _ = chat.for_chat(loaded(tmp_path, text))
    assert {SPECIALS[i] for i in model.tokenizer.end_ids} == {"</s>"}


@pytest.mark.parametrize("name", ["llama3", "chatml"])
def test_the_template_alone_writes_the_beginning(tmp_path, name):
    """As many BOS tokens as the template writes: one or none, and never a second one."""
    plain = loaded(tmp_path, TEMPLATES[name])
    assert plain.tokenizer.add_bos
    model, template = chat.for_chat(plain)
    [text] = prompts_lib.render(template, [messages.of_user("the cat")])
    ids = prompt_ids(model, text)
    assert ids == plain.tokenizer.encode(text)
    assert ids.count(plain.tokenizer.bos_id) == (name == "llama3")


def test_prompts_of_several_conversations(tmp_path):
    _, template = chat.for_chat(loaded(tmp_path, TEMPLATES["mistral"]))
    good, bad = TALK[:1], messages.of_user("Hi", system="Be kind.")
    assert prompts_lib.render(template, [good]) == ["<s>[INST] the cat saw   [/INST]"]
    with pytest.raises(UserError, match="^prompt 2 of 2: .*cannot be applied"):
        prompts_lib.render(template, [good, bad])
    with pytest.raises(UserError, match=r"chat_template.jinja: the chat template cannot be"):
        prompts_lib.render(dataclasses.replace(template), [bad])


@pytest.mark.parametrize(
    "line, reason",
    [
        ("[1]", "a list, but each line must hold an object"),
        ('{"text": "Hi"}', "no key 'messages'"),
        ('{"messages": "Hi"}', "a string, but a conversation is a list of messages"),
        ('{"messages": [{"role": "assistant", "content": "Hi"}]}', "the assistant's own; end with"),
    ],
)
def test_files_of_conversations(tmp_path, line, reason):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n\n')
    assert prompts_lib.read_conversations(str(file)) == [messages.of_user("Hi")]
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(UserError, match=reason) as refused:
        prompts_lib.read_conversations(str(file))
    assert str(refused.value).startswith(f"{file}:3: ") and "\n" not in str(refused.value)
