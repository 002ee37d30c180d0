"""The thoughts of a stage as the output of a notebook's cell."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import fqs_jax
from fqs_jax.reporting import collect, page


class Frame:
    """An HTML page in a frame of its own; notebooks show it as the output of a cell.

    Its style and script do not reach the notebook, nor those of the notebook the page.

    Args:
      page: a whole HTML document.
      height: of the frame, in pixels.
    """

    def __init__(self, page: str, height: int):
        self.page, self._height = page, height

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" width="100%" height="{self._height}" '
            'style="border: 0" title="thoughts"></iframe>'
        )


def thoughts(
    workdir: str,
    stage: str | None = None,
    texts: Sequence[str] = (),
    tokens: int = 200,
    samples: int = 4,
    height: int = 720,
) -> Frame:
    """The viewer of the report: point at a token to see the thoughts before it.

    Args:
      stage: number or name of a thinking stage (1@best: its best step); None = the last one.
      texts: documents to read; empty = the run's own held-out problems or training text.
      tokens: approximate number of tokens of text.
      samples: thoughts sampled before every token.
      height: of the frame, in pixels.

    Raises:
      UserError: the folder has no finished stage, or none that thinks.
    """
    settings = collect.Settings(documents=tuple(texts), stage=stage, tokens=tokens, samples=samples)
    reading = collect.read_thoughts(Path(workdir), settings)
    return Frame(page.viewer(reading, fqs_jax.__version__), height)
