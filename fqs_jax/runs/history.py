"""The history of a working directory for people: its commands, and the commit of this program."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fqs_jax.runtime import agreement, files

_COMMANDS = "commands.txt"


def record_command(root: Path, command: str) -> None:
    """Append a command to W/commands.txt, unless it is the last one already.

    All processes must call this, because they may see different files; process 0 writes.
    """

    def write() -> None:
        before = commands(root)
        if before[-1:] != [command]:
            lines = [*before, command]
            files.write_text(root / _COMMANDS, "".join(f"{line}\n" for line in lines))

    agreement.on_main(write)


def commands(root: Path) -> list[str]:
    """The recorded commands that trained the stages of a working directory, in order."""
    path = root / _COMMANDS
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


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
