"""The history of a working directory for people: its commands, and the commit of this program."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fqs_jax.runtime import agreement, files, inputs, locks
from fqs_jax.runtime.errors import printable

_COMMANDS = "commands.txt"
_LONGEST_WAIT = 60.0  # seconds, for another run that writes it


def record_command(root: Path, command: str) -> None:
    """Append a command to W/commands.txt, unless it is the last one already.

    All processes must call this, because they may see different files; process 0 writes.
    """

    def write() -> None:
        path, line = root / _COMMANDS, f"{command}\n".encode(errors="surrogateescape")
        with locks.held(root, _LONGEST_WAIT):  # several stages may end at the same time
            before = inputs.read_bytes(path) if path.exists() else b""
            if before and not before.endswith(b"\n"):
                before += b"\n"
            if not (b"\n" + before).endswith(b"\n" + line):  # unless it is the last one already
                files.replace(path, lambda file: file.write(before + line))

    agreement.on_main(write)


def commands(root: Path) -> list[str]:
    """The recorded commands that trained the stages of a working directory, in order.

    Bytes that are no text are escaped.
    """
    path = root / _COMMANDS
    if not path.exists():
        return []
    lines = inputs.read_bytes(path).decode(errors="surrogateescape").split("\n")
    return [printable(line, keep="\t") for line in lines if line]


def commit() -> str:
    """The commit of this program, with "-changed" if files differ from it; empty if git has none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails in another project
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + "-changed" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return ""
