"""Questions put to a model as messages of a user, by its chat template.

The answer then stands at the beginning of the assistant's message, without a space in front of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fqs_jax.data import messages
from fqs_jax.data.chat import ChatTemplate
from fqs_jax.evaluation.tasks.items import Cloze, Item

_ASKED = "\nA:"  # how the published form of a question ends; the template asks instead


def write(template: ChatTemplate, text: str) -> str:
    """The text of a conversation in which the user says this, up to where the answer begins."""
    return template.render(messages.of_user(text))


def items(template: ChatTemplate, given: Sequence[Item]) -> list[Item]:
    """Items with choices, as conversations; a choice is read along its own tokens, a letter too."""
    return [
        dataclasses.replace(
            item,
            prompt=write(template, item.prompt.removesuffix(_ASKED)),
            answer=item.answer.lstrip(),
            choices=tuple(choice.lstrip() for choice in item.choices),
            kind="text",
        )
        for item in given
    ]


def clozes(template: ChatTemplate, given: Sequence[Cloze]) -> list[Cloze]:
    """Items scored by the texts of their options, as conversations.

    As in the lm-evaluation-harness, the user says the whole prompt, and an option begins the answer.
    """
    return [
        dataclasses.replace(
            item,
            prompt=write(template, item.prompt),
            options=tuple(option.lstrip() for option in item.options),
            delimiter="",
        )
        for item in given
    ]
