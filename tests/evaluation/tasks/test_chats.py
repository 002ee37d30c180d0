"""Questions of benchmarks as messages."""

from pathlib import Path

import pytest

from fqs_jax.data import tokenizer as tokenizer_lib
from fqs_jax.data.chat import ChatTemplate
from fqs_jax.evaluation.tasks import chats, items, questions
from fqs_jax.evaluation.tasks.items import Cloze, Item
from tests.chats import CHATML, write_tokenizer
from tests.tiny_runs import refusal

TEMPLATE = ChatTemplate(CHATML, {}, Path("chat_template.jinja"))


def test_choices_stand_at_the_beginning_of_the_answer(tmp_path):
    letters = items.lettered("who saw", ["the cat", "nobody"], 1)
    texts = Item("the cat saw", " the mat", (" the mat", " nobody"), "text")
    made = chats.items(TEMPLATE, [letters, texts])
    end = "<|im_end|>\n<|im_start|>assistant\n"
    asked = "Q: who saw\n(A) the cat\n(B) nobody"
    assert made[0] == Item(f"<|im_start|>user\n{asked}{end}", "B", ("A", "B"), "text")
    prompt = f"<|im_start|>user\nthe cat saw{end}"
    assert made[1] == Item(prompt, "the mat", ("the mat", "nobody"), "text")

    write_tokenizer(tmp_path)
    tokenizer = tokenizer_lib.load(tmp_path)
    for item, question in zip(made, questions.prepare(made, tokenizer), strict=True):
        assert item.choices[question.right] == item.answer
        for choice, path in zip(item.choices, question.choices, strict=True):
            read = [step.ids[step.target] for step in path]
            assert tokenizer.encode(item.prompt + choice)[-len(read) :] == read


def test_texts_of_options_begin_the_answer():
    asked = Cloze("Question: who saw\nAnswer:", ("the cat", " nobody"), 1)
    [made] = chats.clozes(TEMPLATE, [asked])
    said = "<|im_start|>user\nQuestion: who saw\nAnswer:<|im_end|>\n<|im_start|>assistant\n"
    assert made == Cloze(said, ("the cat", "nobody"), 1, delimiter="")


@pytest.mark.parametrize(
    "program, flags, reason",
    [
        ("generate", ["--system=Hi", "--prompt=x"], "--system is for --chat; add that or"),
        ("evaluate", ["--task=gsm8k", "--task_file=x", "--chat"], "--chat is for choices and for"),
    ],
)
def test_flags_that_do_not_go_together(program, flags, reason):
    assert reason in refusal(program, "--checkpoint=nowhere", *flags)
