"""The experiments and sweeps that come with the package, by name: `tiny`, `mistral_7b`, `sweeps/default`.

They are the files in `configs/` of the repository, and `fqs_jax.configs` for Python. In a clone that is a
link; an installed package has the files themselves.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from fqs_jax.runtime.errors import UserError, printable

FOLDER = Path(__file__).resolve().parents[1] / "configs"
_NO_EXPERIMENTS = ("__init__", "common")  # common has the fields of all, and no model


def names() -> list[str]:
    """The names, experiments first."""
    files = [*sorted(FOLDER.glob("*.py")), *sorted(FOLDER.glob("*/*.py"))]
    paths = [file.relative_to(FOLDER).with_suffix("") for file in files]
    return [path.as_posix() for path in paths if path.name not in _NO_EXPERIMENTS]


def locate(given: str) -> str:
    """The file of a config that a user gave as a path or as a name.

    A path that exists comes first. `configs/tiny.py`, as in the documentation, is also a name, so it works
    outside of a clone. A path to a file that does not exist is returned as it is.

    Raises:
      UserError: it looks like a name, and none has it.
    """
    if Path(given).is_file():
        return given
    is_path = given.endswith(".py")
    name = given.removeprefix("configs/").removesuffix(".py") if is_path else given
    known = names()
    if name in known:
        return str(FOLDER / f"{name}.py")
    if is_path or Path(given).exists():
        return given
    close = difflib.get_close_matches(name, known, 3, 0.5)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(
        f"there is no config {printable(given, 100)!r}; {meant}give the path of a file, or one of the names "
        f"{', '.join(known)}"
    )


def shorten(path: str) -> str:
    """The name of a shipped config, given its file; any other path as it is."""
    parent = f"{FOLDER}/"
    return path.removeprefix(parent).removesuffix(".py") if path.startswith(parent) else path
