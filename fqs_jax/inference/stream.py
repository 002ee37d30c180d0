"""Generated text, printed as it appears.

It is text from outside, which must not act on a terminal: control characters are shown, not sent.
"""

from __future__ import annotations

import io
import os
import sys

from rich.console import Console
from rich.text import Text

from fqs_jax.inference.generation import Emitted, prompt_ids
from fqs_jax.inference.growing_text import GrowingText
from fqs_jax.inference.loaded import Loaded
from fqs_jax.runtime import screen
from fqs_jax.runtime.errors import visible


class Stream:
    """A continuation, printed token by token while it is generated.

    Args:
      prompt: the text that is continued.
      shown: what is printed of it; None = all.
    """

    def __init__(
        self,
        loaded: Loaded,
        console: Console,
        prompt: str,
        show_thoughts: bool,
        shown: str | None = None,
    ):
        self._loaded, self._console, self._show_thoughts = loaded, console, show_thoughts
        ids = prompt_ids(loaded, prompt)
        self._text = GrowingText(loaded.tokenizer, ids)
        self._shown = loaded.tokenizer.decode(ids)
        text = prompt if shown is None else shown
        console.print(Text(visible(text), style="bold"), end="")

    def step(self, emitted: Emitted) -> None:
        """Print the thought, if thoughts are shown, and the new text of one step."""
        if self._show_thoughts and emitted.thought_BxK.size:
            thought = thought_text(
                self._loaded, emitted.thought_BxK[0].tolist(), float(emitted.weight_B[0])
            )
            self._console.print(thought, end="")
        if emitted.token_B[0] < 0:
            return
        # A token alone may not be a text (a space, a byte of a character): print what it adds to the
        # decoded text.
        text = self._text.append(int(emitted.token_B[0]))
        if not text.endswith("\ufffd"):
            self._console.print(Text(visible(text[len(self._shown) :])), end="")
            self._shown = text


def plain_console() -> Console:
    """A console with styles on terminals only, and none with NO_COLOR, where rich would still dim.

    Characters that the terminal cannot write become question marks.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    plain = bool(os.environ.get("NO_COLOR"))
    return screen.OutputConsole(
        highlight=False, soft_wrap=True, color_system=None if plain else "auto"
    )


def thought_text(loaded: Loaded, drawn: list[int], weight: float) -> Text:
    """A thought and its mixing weight, as \u2039words|weight\u203a."""
    words = visible(loaded.thought_text(drawn)).replace("\n", "\u23ce")
    return Text(f" \u2039{words}|{weight:.2f}\u203a ", style="dim italic")
