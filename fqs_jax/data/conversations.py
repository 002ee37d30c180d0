"""Conversations as training rows: the ids of their text, of which only the assistant's part is learned."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from fqs_jax.data import marked_tokens
from fqs_jax.data.chat import ChatTemplate
from fqs_jax.data.marked_tokens import MarkedSource
from fqs_jax.data.tokenizer import Tokenizer
from fqs_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Conversations(MarkedSource):
    """The conversations of a source as texts, and as tokens.

    Attributes:
      source: documents that are the JSON of messages.
    """

    template: ChatTemplate

    @property
    def settings(self) -> str:
        return f"{self.source.settings} {self.template.fingerprint()}"

    def __getitem__(self, index: int) -> str:
        document = self.source[index]
        return self.template.mark(json.loads(document)).text if document else ""

    def tokens(self, index: int, tokenizer: Tokenizer) -> np.ndarray:
        """The ids of a conversation, int32 [tokens], ~id for those outside of the assistant's part.

        They are those of the text that the template writes, without a BOS or end token of ours. A blank
        document has none.

        Raises:
          UserError: the template refuses the conversation, or the model has no row for a token.
        """
        if not (document := self.source[index]):
            return np.zeros(0, np.int32)
        try:
            text, spans = self.template.mark(json.loads(document))
            ids, learned = tokenizer.encode_marked(text, spans)
        except UserError as error:
            raise UserError(f"{self.place(index)}: {error}") from error
        if not any(learned):
            raise UserError(
                f"{self.place(index)}: the chat template marks no text of the assistant here, so nothing "
                "can be learned; correct the template, or remove the conversation"
            )
        return marked_tokens.stored(ids, learned)
