"""Chat templates, run in a process of their own: a template is a program of a stranger.

`chat.py` runs this file as a script; it needs jinja2 and the standard library only. Each line of standard
input is a JSON object with

    template, variables     the source in Jinja, and the names that it may use, such as bos_token
    messages                the conversation
    prompt                  true = the text ends where an answer begins (add_generation_prompt)
    open                    true = the last message is to be continued (continue_final_message)
    marks                   true = find the text of the assistant
    date                    ISO date that strftime_now gives; null = now

Each line of standard output is the JSON of one of

    {"text": "..", "spans": [[start, end], ..]}     spans only with marks, in characters
    {"refused": ".."}                               an error in the template, or one that it raises
    {"moving": 3}                                   see `_turns`; the number of a message
    {"memory": true}, {"long": true}                beyond MEMORY or MOST_CHARACTERS

A template that takes more than SECONDS of the processor ends this process.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

SECONDS = 10  # of the processor, for all renderings of one conversation
MEMORY = 1 << 30  # bytes that this process may allocate
MOST_CHARACTERS = 1 << 24  # of a rendered conversation
OUT_OF_MEMORY = 99  # exit code
_OPEN_END = "\ue000the end of the last message\ue000 "  # the space shows whether spaces are kept
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

Messages = list[dict[str, Any]]


class _TooLong(Exception):
    """A text of more than MOST_CHARACTERS."""


class _Marks(jinja2.ext.Extension):
    """The tag {% generation %}, which stands around what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The tag and its body as a call of `_marked` with that body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        text = caller()
        environment: Any = self.environment
        environment.spans.append([environment.written, environment.written + len(text)])
        return text


class _Namespace(jinja2.utils.Namespace):
    """The `namespace` of templates, without names that Python keeps for itself."""

    def __init__(*args: Any, **fields: Any) -> None:
        own, *rest = args  # so that a field may be called `self`
        fields = dict(*rest, **fields)
        for name in fields:
            _check_name(name)
        jinja2.utils.Namespace.__init__(own, fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the name {str(name)[:60]!r} begins with _")


def _raise_exception(reason: str) -> None:
    raise jinja2.exceptions.TemplateError(reason)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes that Jinja's own filter adds for web pages."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@functools.lru_cache(maxsize=16)
def _compiled(template: str, date: str | None) -> jinja2.Template:
    environment: Any = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Marks, jinja2.ext.loopcontrols]
    )
    environment.extend(written=0, spans=[])

    def strftime_now(pattern: str) -> str:
        day = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
        return day.strftime(pattern)

    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": strftime_now,
        "namespace": _Namespace,
        "dict": lambda *args, **fields: dict(*args, **fields),  # without the methods of the class
    }
    compiled: jinja2.Template = environment.from_string(template)
    return compiled


def _render(question: dict[str, Any], messages: Messages, prompt: bool) -> str:
    template = _compiled(question["template"], question["date"])
    environment: Any = template.environment
    environment.written, environment.spans = 0, []
    names = {"tools": None, "documents": None, "messages": messages}
    parts = []
    for part in template.generate(
        question["variables"] | names | {"add_generation_prompt": prompt}
    ):
        parts.append(part)
        environment.written += len(part)
        if environment.written > MOST_CHARACTERS:
            raise _TooLong
    return "".join(parts)


def _continued(question: dict[str, Any], messages: Messages) -> dict[str, Any]:
    """The text up to the end of the last message's content."""
    *others, last = messages
    text = _render(question, [*others, last | {"content": last["content"] + _OPEN_END}], False)
    before, mark, after = text.rpartition(_OPEN_END.rstrip())
    if not mark or last["content"].strip() not in before:
        return {
            "refused": "the last message, which is to be continued, does not appear in the text"
        }
    # A template that trims the message has dropped the space, and so the spaces in front of the mark.
    return {"text": before if after.startswith(" ") else before.rstrip()}


def _turns(question: dict[str, Any], messages: Messages) -> dict[str, Any]:
    """The text of a conversation, and the parts that the assistant writes.

    These are inside {% generation %}, if the template has that tag. Otherwise each reaches from where an
    answer to the messages before it begins to the end of the conversation up to it. That is only true
    if the text of these beginnings of the conversation does not change when more messages follow.
    """
    whole = _render(question, messages, False)
    if _GENERATION.search(question["template"]):
        environment: Any = _compiled(question["template"], question["date"]).environment
        return {"text": whole, "spans": environment.spans}
    spans = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(question, messages[:number], True)
            after = _render(question, messages[: number + 1], False)
            if not (whole.startswith(after) and after.startswith(before)):
                return {"moving": number}
            spans.append([len(before), len(after)])
    return {"text": whole, "spans": spans}


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question, which never fails."""
    messages = question["messages"]
    try:
        if question["marks"]:
            return _turns(question, messages)
        if question["open"]:
            return _continued(question, messages)
        return {"text": _render(question, messages, question["prompt"])}
    except MemoryError:
        return {"memory": True}
    except _TooLong:
        return {"long": True}
    except Exception as error:  # a template is a program: anything can go wrong in it
        return {"refused": str(error).partition("\n")[0][:1000] or type(error).__name__}


def limit() -> None:
    """Let this process allocate MEMORY at most, and neither write files nor start processes."""
    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_DATA": MEMORY, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0}
    if sys.platform == "darwin":  # which does not keep the first two
        threading.Thread(target=watch_memory, daemon=True).start()
    for name, most in limits.items():
        _set_limit(getattr(resource, name), most)


def watch_memory() -> None:
    """End this process when it has taken more than MEMORY."""
    unit = 1 if sys.platform == "darwin" else 1024
    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit <= MEMORY:
        time.sleep(0.05)
    os._exit(OUT_OF_MEMORY)


def _limit_time() -> None:
    """Give this process SECONDS more of the processor; the system ends it after that."""
    _set_limit(resource.RLIMIT_CPU, int(time.process_time()) + SECONDS + 1)


def _set_limit(kind: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(
            kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
        )


def main() -> None:
    """Answer every question of standard input."""
    sys.dont_write_bytecode = True
    limit()
    for line in sys.stdin:
        _limit_time()
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
