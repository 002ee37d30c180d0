"""The file of chains of thought: a line of JSON for each, appended model by model.

Several processes may append to one file: each locks it while it reads its end and writes behind it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fqs_jax.runtime import files, inputs, locks, outputs
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.stderr import say

_BEGINNING = b'{"model": '


def prepare(path: Path) -> None:
    """Make sure that lines can be appended to a file, which is made if it does not exist.

    A part of a line at its end, which a kill or a power cut has left, is removed with a note.

    Raises:
      UserError: it is another file, or one of its lines is damaged.
      OSError: it cannot be written.
    """
    outputs.check_ours(path, _is_chains, "file of chains", "--chains_file")
    with _locked(path) as file:
        with open(file, "rb", closefd=False) as lines:
            lines.seek(0)
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n") and not _is_object(line):
                    raise UserError(
                        f"{inputs.name(path)}:{number}: damaged, it is no line of a chain; remove this "
                        "line, or name another file with --chains_file"
                    )
        _end_last_line(file, path)


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append objects to a file that `prepare` has seen."""
    content = "".join(files.json_text(dict(line)) + "\n" for line in lines).encode()
    with _locked(path) as file:
        _end_last_line(file, path)
        _write(file, content)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The descriptor of the file, which no other process has locked; what is written goes to its end."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        locks.wait_for(file, path)
        yield file
    finally:
        os.close(file)


def _end_last_line(file: int, path: Path) -> None:
    """Give the last line its newline if that alone is missing, and remove a line that is not whole."""
    if not os.fstat(file).st_size:
        return
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(b"\n") + 1
        last = content[start:]
    if not last:
        return
    if _is_object(last):
        _write(file, b"\n")
        return
    os.ftruncate(file, start)
    shown = inputs.name(path)
    say(f"note: {shown}: its last line was not whole, and is removed")


def _write(file: int, content: bytes) -> None:
    """Write everything, at once if the system takes it."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


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
