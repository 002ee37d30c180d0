"""The frame of every command-line program: one-line errors, exit codes, and the set-up of JAX."""

from __future__ import annotations

import functools
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from fqs_jax.runtime import files, orbax_errors, processes, sharding
from fqs_jax.runtime.errors import UserError
from fqs_jax.runtime.interrupts import Interrupted

CACHE = files.CACHE / "jax"
MAX_SEED = 2**32 - 1  # the largest that a JAX key takes


def run(
    main: Callable[[Sequence[str]], None],
    define_flags: Callable[[], None] = lambda: None,
    arguments: int = 0,
) -> None:
    """Run an absl program. Exit code 2 on bad input, 128 + signal when interrupted.

    Args:
      define_flags: defines flags whose definition reads the command line, so not at import.
      arguments: the largest number of arguments that are not flags.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1 + arguments:
            _stop(f"unknown argument {argv[1 + arguments]!r}; options start with --, see --help", 2)
        logging.set_verbosity(logging.ERROR)  # Orbax logs every save, JAX every peer
        orbax_errors.silence()
        try:
            processes.initialize_from_flags()
            keep_programs()
            main(argv)
        except UserError as error:
            _stop(str(error), 2)
        except Interrupted as stop:
            if processes.is_main():
                print(stop, file=sys.stderr, flush=True)
            processes.leave(128 + stop.signum)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr, flush=True)
            processes.leave(130)
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                _stop(f"{error.filename}: {error.strerror}", 2)
            if "RESOURCE_EXHAUSTED" in str(error):
                _stop(
                    "a device ran out of memory; try --config.microbatches=2, or see what fits with "
                    f"python -m fqs_jax.plan ({str(error).splitlines()[0][:200]})",
                    2,
                )
            if not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            processes.leave(1)

    app.run(guarded, flags_parser=functools.partial(_parse, define_flags=define_flags))


def require(**values: object) -> None:
    """Require values of flags.

    Raises:
      UserError: names the first one missing.
    """
    for name, value in values.items():
        if not value:
            raise UserError(f"--{name} is missing; see --help")


def define_device_flags() -> None:
    """Define the flags of `mesh_from_flags`."""
    flags.DEFINE_integer("fsdp", 1, "Devices that share parameters and rows.", 1)
    flags.DEFINE_integer("tensor", 1, "Devices that share heads and vocabulary.", 1)


def mesh_from_flags() -> jax.sharding.Mesh:
    """The devices of this process that --fsdp and --tensor request for a loaded model."""
    return sharding.local_mesh(flags.FLAGS.fsdp, flags.FLAGS.tensor)


def command_line(module: str, **flags_by_name: object) -> str:
    """A command for a shell, without the flags that are empty."""
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in flags_by_name.items()
        if value not in (None, "", False)
    ]
    return " ".join(["python -m", module, *map(shlex.quote, words)])


def config_overrides(
    words: Sequence[str] | None = None, known: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """The overrides of config fields on the command line, each as one word, `--config.field=value`.

    Args:
      words: a command line without the program; None = this program's.
      known: flags that have parsed it. They distinguish a field that takes the next word from a bool.
    """
    left = iter(sys.argv[1:] if words is None else words)
    found = []
    for word in left:
        name = re.fullmatch(r"--?((?:no)?config\..+)", word, re.DOTALL)
        if not name:
            continue
        is_complete = "=" in name[1] or name[1] not in known or known[name[1]].boolean
        found.append(f"--{name[1]}" if is_complete else f"--{name[1]}={next(left, '')}")
    return found


def _parse(argv: list[str], define_flags: Callable[[], None]) -> list[str]:
    """Parse flags with absl, and exit with its errors in one line."""
    try:
        define_flags()
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            flags.FLAGS.config.get("seed")  # a missing file is an error at the first use
        return rest
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        _stop(" ".join(dict.fromkeys((lines[0], lines[-1]))), 2)  # between them, a traceback
    except Exception as error:  # a config is a program: anything can go wrong in it
        _stop(config_problem(error), 2)
    raise AssertionError("unreachable")


def config_problem(error: Exception) -> str:
    """One line about an exception from reading a config or overriding its fields."""
    text = str(error)
    if meant := re.search(r'Did you mean "(.+?)" instead of "(.+?)"', text):
        return f"the config has no field {meant[2]!r}; did you mean {meant[1]!r}?"
    name = re.fullmatch(r"\W*(\w+)\W*", text)
    if name and isinstance(error, AttributeError | KeyError):
        return f"the config has no field {name[1]!r}; see configs/common.py"
    if isinstance(error, OSError):  # wrapped by the library, with the cause at the end
        reason = re.split(r"failure to load: |\[Errno \d+\] ", text)[-1]
        return f"cannot read the config: {reason.strip()}"
    return f"cannot read the config: {type(error).__name__}: {' '.join(text.split())}"


def keep_programs() -> None:
    """Cache programs that took a second to compile in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false disables the
    cache. Several processes need a folder that all of them share, so there is no default for them:
    only process 0 writes to it. If some hosts load a cached program while others compile and tune it
    together on GPUs, they can deadlock.
    """
    named = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not named and not jax.distributed.is_initialized():
        jax.config.update("jax_compilation_cache_dir", str(CACHE))


def _stop(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    processes.leave(code)
