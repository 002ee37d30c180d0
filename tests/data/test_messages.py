"""Conversations in data: what is taken, and one line with file and line for what is not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqs_jax.data import messages
from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import open_sources
from fqs_jax.runtime.errors import UserError
from tests.chats import TALK

USER, ANSWER = TALK[0], TALK[1]
OPTIONS = Options("messages", chat=True)


def written(path, *values, key="messages"):
    path.write_text("".join(json.dumps({key: value}) + "\n" for value in values))
    return str(path)


def test_conversations_are_the_json_of_their_messages(tmp_path):
    file = written(tmp_path / "a.jsonl", TALK, None, [USER, ANSWER])
    [(source, _)] = open_sources(file, OPTIONS)
    assert [json.loads(source[i]) for i in range(len(source))] == [TALK, [USER, ANSWER]]
    assert [source.place(i) for i in range(2)] == [f"{file}:1", f"{file}:3"]
    assert source.settings != "jsonl messages"  # that of texts under the same key


def test_other_ways_to_write_messages():
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert messages.conversation(shared, "x") == plain
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    whole = [{"role": "user", "content": parts, "name": None}, plain[1]]
    assert messages.conversation(whole, "x") == plain
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    found = messages.conversation([plain[0], call], "x")
    assert found[1] == {"role": "assistant", "tool_calls": call["tool_calls"]}


@pytest.mark.parametrize(
    "value, reason",
    [
        ("Hi", "a string, but a conversation is a list of messages"),
        ([], "a conversation without messages; remove it"),
        ([USER, "Hi"], "message 2 is a string; it must be an object with role and content"),
        ([{"content": "Hi"}, ANSWER], "message 1 has no 'role'; give one of system"),
        ([{"role": None, "content": "Hi"}, ANSWER], "message 1 has no 'role'"),
        ([{"role": "king", "content": "Hi"}, ANSWER], 'message 1 has the role "king"; give one'),
        ([{"role": ["user"], "content": "Hi"}, ANSWER], r'has the role \["user"\]'),
        ([{"role": "user"}, ANSWER], "message 1 has no 'content'; give it a text"),
        ([USER, {"role": "assistant", "content": 5}], "message 2: the content is a number"),
        ([{"role": "user", "content": {"text": "Hi"}}, ANSWER], "the content is an object"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER],
            r"message 1: the content has a part that is no text \(image\); leave it out",
        ),
        ([{"role": "user", "content": ["Hi"]}, ANSWER], r"no text \(a string\)"),
        ([{"role": "user", "content": "\ud83d"}, ANSWER], "half a surrogate pair"),
        ([ANSWER, USER], "begins with a message of the assistant"),
        ([USER, USER], "has no message of the assistant, so nothing can be learned"),
        ([USER, ANSWER] * 50_000, "a conversation of 100,000 messages; divide it"),
    ],
)
def test_broken_conversations_are_one_line(tmp_path, value, reason):
    file = written(tmp_path / "a.jsonl", TALK, value)
    with pytest.raises(UserError, match=reason) as refused:
        open_sources(file, OPTIONS)
    assert str(refused.value).startswith(f"{file}:2: 'messages'")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_sources_without_conversations(tmp_path):
    file = written(tmp_path / "a.jsonl", TALK, key="talk")
    with pytest.raises(UserError, match=r"a.jsonl:1: no key 'messages'.*seen: 'talk'"):
        open_sources(file, OPTIONS)
    assert len(open_sources(f"{file}#talk", OPTIONS)[0][0]) == 1
    (tmp_path / "a.txt").write_text("Hi")
    with pytest.raises(UserError, match="a.txt: conversations are read from .jsonl and .array_rec"):
        open_sources(str(tmp_path / "a.txt"), OPTIONS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls"]),
            inner | st.sampled_from(["user", "assistant", "text", "gpt"]),
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_conversation_or_one_line(value):
    try:
        found = messages.conversation(value, "file:1")
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith("file:1")
        return
    assert len(found) == len(value)
    for message in found:
        assert message["role"] in messages.ROLES
        assert isinstance(message.get("content", ""), str)


def test_a_conversation_to_answer_ends_with_a_question():
    assert messages.prompt([USER], "x") == [USER]
    with pytest.raises(UserError, match="x: the last message is the assistant's own"):
        messages.prompt(TALK, "x")
