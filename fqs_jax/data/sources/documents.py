"""All documents of a small text at once, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from fqs_jax.data.sources.options import Options
from fqs_jax.data.sources.specification import open_sources
from fqs_jax.data.sources.text_files import is_blank
from fqs_jax.runtime.errors import UserError


def read_documents(
    names: str | Sequence[str], key: str = "text", options: Options | None = None
) -> list[str]:
    """All documents that a specification names (specification.py), without the blank ones.

    Raises:
      UserError: a source cannot be read, has a weight, or all documents are blank.
    """
    sources = open_sources(names, options or Options(key))
    if len(sources) > 1 or sources[0][1] != 1:
        raise UserError(f"{names}: weights are for training; leave them out")
    source = sources[0][0]
    documents = [text for i in range(len(source)) if not is_blank(text := source[i])]
    if not documents:
        raise UserError(f"{names}: nothing but blanks; name files that contain text")
    return documents
