"""The file of chains of thought: a line of JSON for each, appended model by model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fqs_jax.runtime import files, inputs, outputs
from fqs_jax.runtime.errors import UserError

_BEGINNING = b'{"model": '


def prepare(path: Path) -> None:
    """Make sure that lines can be appended to a file, which is made if it does not exist.

    A part of a line at its end, which a kill or a power cut has left, is removed with a note.

    Raises:
      UserError: it is another file, or one of its lines is damaged.
      OSError: it cannot be written.
    """
    outputs.check_ours(path, _is_chains, "file of chains", "--chains_file")
    path.open("ab").close()
    with path.open("r+b") as file:
        whole = 0  # bytes of the lines so far
        for number, line in enumerate(file, start=1):
            ended = line.endswith(b"\n")
            if not _is_object(line):
                if ended:
                    raise UserError(
                        f"{inputs.name(path)}:{number}: damaged, it is no line of a chain; remove this "
                        "line, or name another file with --chains_file"
                    )
                file.truncate(whole)
                print(
                    f"note: {inputs.name(path)}: its last line was not whole, and is removed",
                    file=sys.stderr,
                )
                break
            whole += len(line)
            if not ended:
                file.write(b"\n")


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append objects to a file that `prepare` has seen."""
    text = "".join(files.json_text(dict(line)) + "\n" for line in lines)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _is_chains(start: bytes, _: bytes) -> bool:
    """True if a file that starts like this is empty, or holds chains of thought, or a part of one."""
    # A power cut leaves a page of NUL bytes at most; a longer file of them is something else.
    is_part = len(start) <= 4096 and _BEGINNING.startswith(start.rstrip(b"\0"))
    return start.startswith(_BEGINNING) or is_part


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
