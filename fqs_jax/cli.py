"""What all command lines share: errors in one line, and JAX set up the same way."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from fqs_jax.errors import UserError
from fqs_jax.interrupts import Interrupted

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fqs_jax" / "jax"


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run an absl program. Exit code 2 on bad input, 128 + signal when interrupted."""

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _stop(f"unknown argument {argv[1]!r}; options start with --, see --help", 2)
        _set_up_jax()
        try:
            main(argv)
        except UserError as error:
            _stop(str(error), 2)
        except Interrupted as stop:
            print(stop, file=sys.stderr, flush=True)
            sys.exit(128 + stop.signum)
        except KeyboardInterrupt:
            _stop("stopped without saving; the last checkpoint stands", 130)

    app.run(guarded, flags_parser=_parse)


def require(**values: object) -> None:
    """Flags that must be given.

    Raises:
      UserError: names the first one missing.
    """
    for name, value in values.items():
        if not value:
            raise UserError(f"--{name} is missing; see --help")


def command_line(module: str, **flags_by_name: object) -> str:
    """A command as a user would type it, without the flags that are empty."""
    words = [
        f"--{name}={value}"
        for name, value in flags_by_name.items()
        if value not in (None, "", False)
    ]
    return " ".join(["python -m", module, *map(shlex.quote, words)])


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with its complaints in one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _stop(" ".join(str(error).split()), 2)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What a config override raises: an unknown field (with the nearest one) or a wrong type.
        _stop(" ".join(str(error).strip("'\"").split()), 2)
    except (OSError, SyntaxError, ImportError) as error:
        _stop(f"cannot read the config: {error}", 2)
    raise AssertionError("unreachable")


def _set_up_jax() -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax tells every save
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(CACHE))


def _stop(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
