"""The settings that all kinds of sources are opened with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fqs_jax.runtime import inputs, paths
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.files import cache_folder


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings for opening sources.

    Attributes:
      key: the field, column or feature with the text, where a source does not name its own.
      cache: folder for what is made from the text, on this machine.
      tokens: folder for the tokens of large texts; may be in a bucket.
      tfds_dir: folder of prepared TFDS datasets; None = the library's own.
      chat: documents are conversations, as the JSON of their messages (messages.py).
      download: whether a dataset that is not here may be fetched.
      download_flag: the flag of this program that allows it, for error messages; "" if it has none.
    """

    key: str = "text"
    cache: Path = dataclasses.field(default_factory=cache_folder)
    tokens: Path = dataclasses.field(default_factory=cache_folder)
    tfds_dir: str | None = None
    download: bool = False
    chat: bool = False
    download_flag: str = ""

    @property
    def to_fetch(self) -> str:
        """The end of an error message: how the user fetches a dataset that is not here."""
        if self.download_flag:
            return f"add {self.download_flag}"
        place = f", --tfds_dir={self.tfds_dir}" if self.tfds_dir else ""
        return f"run python -m fqs_jax.prepare with --text{place}, --out and --download first"


def of_program(download: bool) -> Options:
    """Options of a program that has the flag --download."""
    return Options(download=download, download_flag="--download")


def of(
    key: str,
    cache_dir: str,
    tfds_dir: str,
    download: bool,
    download_flag: str,
    chat: bool = False,
) -> Options:
    """Options with the folders as a user wrote them; an empty one is the default.

    Args:
      cache_dir: in a bucket, only tokens are kept there.
      download_flag: see `Options`.

    Raises:
      UserError: a folder is an address of another machine.
    """
    tokens = paths.expand(cache_dir) if cache_dir else cache_folder()
    if not paths.is_bucket(tokens) and tokens.is_file():
        raise UserError(f"{inputs.name(tokens)} is a file; data.cache_dir should be a folder")
    cache = cache_folder() if paths.is_bucket(tokens) else tokens
    return Options(
        key,
        cache,
        tokens,
        str(paths.expand_local(tfds_dir)) if tfds_dir else None,
        download,
        chat,
        download_flag,
    )
