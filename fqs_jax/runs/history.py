"""What a stage is made from, as a record of JSON values: what may change in it, and what has.

A record holds the stage's row, the config, a digest of its data, and the records it was made from. For
people, W/commands.txt has the commands beside it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from fqs_jax.runtime import agreement, files

_COMMANDS = "commands.txt"


def record_command(root: Path, command: str) -> None:
    """Add a command to those that made the working directory, unless it was the last one already."""

    def write() -> None:
        before = commands(root)
        if before[-1:] != [command]:
            lines = [*before, command]
            files.write_text(root / _COMMANDS, "".join(f"{line}\n" for line in lines))

    agreement.on_main(write)  # which all must call: what a file says now may differ by process


def commands(root: Path) -> list[str]:
    """The commands that trained the stages of a working directory, in order, as far as recorded."""
    path = root / _COMMANDS
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def commit() -> str:
    """The commit of this program, with "-changed" if files differ from it; empty where git has none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not another project's environment
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=10", "HEAD") + "-changed" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return ""
